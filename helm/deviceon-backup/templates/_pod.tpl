{{/* Parts of pods. They take {root, unit} and more where it is said. */}}

{{- define "deviceon-backup.securityContext" -}}
{{- toYaml .unit.values.securityContext -}}
{{- end -}}

{{- define "deviceon-backup.podSecurity" -}}
{{- $security := mustDeepCopy .unit.values.podSecurityContext -}}
{{- if .unit.values.tpm.groups -}}
  {{- $groups := list -}}
  {{- range concat (default list $security.supplementalGroups) .unit.values.tpm.groups -}}{{- $groups = append $groups (int64 .) -}}{{- end -}}
  {{- $_ := set $security "supplementalGroups" (uniq $groups) -}}
{{- end -}}
{{- range $key := list "runAsNonRoot" "runAsUser" "runAsGroup" "seccompProfile" -}}
  {{- if and (hasKey $.unit.values.securityContext $key) (not (hasKey $security $key)) -}}
    {{- $_ := set $security $key (get $.unit.values.securityContext $key) -}}
  {{- end -}}
{{- end -}}
{{- toYaml $security -}}
{{- end -}}

{{- define "deviceon-backup.resources" -}}
{{- $resources := mustDeepCopy .unit.values.resources -}}
{{- if .unit.values.tpm.resource -}}
  {{- $_ := set $resources "limits" (mustMerge (dict .unit.values.tpm.resource 1) (default dict $resources.limits)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* What is mounted. `forgetful`: state is not the claim's. `config`: name of the ConfigMap. */}}
{{- define "deviceon-backup.volumes" -}}
- name: deviceon-backup-config
  configMap:
    name: {{ default .unit.name .config }}
- name: deviceon-backup-run
  emptyDir: {sizeLimit: 16Mi}
- name: deviceon-backup-tmp
  emptyDir: {sizeLimit: 64Mi}
- name: deviceon-backup-state
{{- if or .forgetful .unit.values.state.ephemeral }}
  emptyDir: {}
{{- else }}
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-state" .unit.name) .unit.values.state.existingClaim }}
{{- end }}
{{- if .unit.values.archives.enabled }}
- name: deviceon-backup-archives
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-archives" .unit.name) .unit.values.archives.existingClaim }}
{{- end }}
{{- range $index, $secret := .unit.values.secrets }}
- name: deviceon-backup-secret-{{ $index }}
  secret:
    secretName: {{ $secret.name }}
    defaultMode: 0440
    {{- with $secret.items }}
    items:
      {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end }}
{{- with .unit.values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "deviceon-backup.volumeMounts" -}}
- {name: deviceon-backup-config, mountPath: /etc/deviceon-backup, readOnly: true}
- {name: deviceon-backup-run, mountPath: /run}
- {name: deviceon-backup-tmp, mountPath: /tmp}
- {name: deviceon-backup-state, mountPath: /var/lib/deviceon-backup}
{{- if .unit.values.archives.enabled }}
- {name: deviceon-backup-archives, mountPath: {{ .unit.values.archives.mountPath }}}
{{- end }}
{{- range $index, $secret := .unit.values.secrets }}
- {name: deviceon-backup-secret-{{ $index }}, mountPath: /secrets/{{ $secret.path }}, readOnly: true}
{{- end }}
{{- with .unit.values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* What every container of the program has in common. Takes `args` too. */}}
{{- define "deviceon-backup.program" -}}
image: {{ include "deviceon-backup.image" .root | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
args: {{ toJson .args }}
{{- with .unit.values.extraEnv }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
resources:
  {{- include "deviceon-backup.resources" . | nindent 2 }}
securityContext:
  {{- include "deviceon-backup.securityContext" . | nindent 2 }}
volumeMounts:
  {{- include "deviceon-backup.volumeMounts" . | nindent 2 }}
{{- end -}}

{{- define "deviceon-backup.healthcheck" -}}
exec:
  command: [/opt/deviceon-backup/bin/python, -I, /opt/deviceon-backup/healthcheck.py]
{{- end -}}

{{/* The service's container. `startup`, `readiness`: whether it has these probes. */}}
{{- define "deviceon-backup.service" -}}
name: deviceon-backup
{{ include "deviceon-backup.program" (dict "root" .root "unit" .unit "args" (list "serve")) }}
{{- if .unit.values.metrics.enabled }}
ports:
  - {name: backup-metrics, containerPort: {{ int .unit.values.metrics.port }}}
{{- end }}
{{- if .startup }}
startupProbe:
  {{- include "deviceon-backup.healthcheck" . | nindent 2 }}
  periodSeconds: {{ int .unit.values.probes.startup.periodSeconds }}
  timeoutSeconds: 10
  failureThreshold: {{ int .unit.values.probes.startup.failureThreshold }}
{{- end }}
livenessProbe:
  {{- include "deviceon-backup.healthcheck" . | nindent 2 }}
  {{- if not .startup }}
  initialDelaySeconds: {{ mul (int .unit.values.probes.startup.periodSeconds) (int .unit.values.probes.startup.failureThreshold) }}
  {{- end }}
  periodSeconds: {{ int .unit.values.probes.liveness.periodSeconds }}
  timeoutSeconds: {{ int .unit.values.probes.liveness.timeoutSeconds }}
  failureThreshold: {{ int .unit.values.probes.liveness.failureThreshold }}
{{- if .readiness }}
readinessProbe:
  {{- if .unit.values.metrics.enabled }}
  httpGet: {path: /readyz, port: backup-metrics}
  {{- else }}
  {{- include "deviceon-backup.healthcheck" . | nindent 2 }}
  {{- end }}
  periodSeconds: {{ int .unit.values.probes.readiness.periodSeconds }}
  timeoutSeconds: 10
{{- end }}
{{- end -}}

{{/* The portal's container. Of the secrets it has those that its own configuration names: it is what the network reaches. */}}
{{- define "deviceon-backup.portal" -}}
name: deviceon-backup-portal
image: {{ include "deviceon-backup.image" .root | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
args: [portal, --config, /etc/deviceon-backup/portal.yaml]
ports:
  - {name: backup-portal, containerPort: {{ int .unit.values.portal.port }}}
resources:
  {{- toYaml .unit.values.portal.resources | nindent 2 }}
securityContext:
  {{- include "deviceon-backup.securityContext" . | nindent 2 }}
readinessProbe:
  tcpSocket: {port: backup-portal}
  periodSeconds: 10
volumeMounts:
  - {name: deviceon-backup-config, mountPath: /etc/deviceon-backup, readOnly: true}
  - {name: deviceon-backup-run, mountPath: /run}
  - {name: deviceon-backup-tmp, mountPath: /tmp}
  {{- $config := toJson .unit.values.portal.config }}
  {{- range $index, $secret := .unit.values.secrets }}
  {{- if contains (printf "\"/secrets/%s/" $secret.path) $config }}
  - {name: deviceon-backup-secret-{{ $index }}, mountPath: /secrets/{{ $secret.path }}, readOnly: true}
  {{- end }}
  {{- end }}
{{- end -}}

{{/* Where pods run, and as whom. `early`: before the objects of the release are there. */}}
{{- define "deviceon-backup.podSpec" -}}
{{- if not .early }}
serviceAccountName: {{ include "deviceon-backup.serviceAccount" .root }}
{{- end }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext:
  {{- include "deviceon-backup.podSecurity" . | nindent 2 }}
terminationGracePeriodSeconds: {{ include "deviceon-backup.stopSeconds" . }}
{{- include "deviceon-backup.placing" . }}
{{- end -}}

{{/*
`beside`: on the node of the service, if there is one. A volume that one node mounts would keep the pod waiting elsewhere.
*/}}
{{- define "deviceon-backup.placing" -}}
{{- with .unit.values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $affinity := mustDeepCopy (default dict .unit.values.affinity) -}}
{{- if and .beside .unit.values.archives.enabled -}}
  {{- $labels := fromYaml (include "deviceon-backup.podSelector" (dict "root" .root "unit" .unit "component" "service")) -}}
  {{- $term := dict "labelSelector" (dict "matchLabels" $labels) "topologyKey" "kubernetes.io/hostname" -}}
  {{- $pods := default dict $affinity.podAffinity -}}
  {{- $terms := default list $pods.preferredDuringSchedulingIgnoredDuringExecution -}}
  {{- $_ := set $pods "preferredDuringSchedulingIgnoredDuringExecution" (append $terms (dict "weight" 100 "podAffinityTerm" $term)) -}}
  {{- $_ := set $affinity "podAffinity" $pods -}}
{{- end -}}
{{- with $affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .unit.values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "deviceon-backup.podMetadata" -}}
labels:
  {{- include "deviceon-backup.labels" .root | nindent 2 }}
  {{- with .component }}
  app.kubernetes.io/component: {{ . }}
  {{- end }}
  {{- with .unit.server }}
  deviceon-backup/server: {{ . }}
  {{- end }}
  {{- with .unit.values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  {{- include "deviceon-backup.checksum" . | nindent 2 }}
  {{- with .unit.values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* A new configuration is a new pod: the service does not read it again by itself. */}}
{{- define "deviceon-backup.checksum" -}}
deviceon-backup/config: {{ printf "%s\n%s" (include "deviceon-backup.config" .) (include "deviceon-backup.portalConfig" .) | sha256sum }}
{{- end -}}

{{- define "deviceon-backup.portalConfig" -}}
{{- if .unit.values.portal.enabled -}}
{{- toYaml (merge (dict "listen" (printf "%s:%d" .unit.values.portal.address (int .unit.values.portal.port))) .unit.values.portal.config) -}}
{{- end -}}
{{- end -}}

{{/* A pod that runs one command to its end. Takes `args`, `forgetful`, `config`, `jitter`, `early`, `beside`. */}}
{{- define "deviceon-backup.oneCommand" -}}
restartPolicy: Never
{{ include "deviceon-backup.podSpec" . | trim }}
{{- if .jitter }}
initContainers:
  - name: jitter
    image: {{ include "deviceon-backup.image" .root | quote }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    command:
      - /usr/bin/tini
      - -s
      - --
      - /opt/deviceon-backup/bin/python
      - -I
      - -c
      - "import random, sys, time; time.sleep(random.uniform(0, float(sys.argv[1])))"
      - {{ int .jitter | quote }}
    resources:
      requests: {cpu: 10m, memory: 16Mi}
      limits: {cpu: 100m, memory: 32Mi}
    securityContext:
      {{- include "deviceon-backup.securityContext" . | nindent 6 }}
{{- end }}
containers:
  - name: deviceon-backup
    {{- include "deviceon-backup.program" . | nindent 4 }}
volumes:
  {{- include "deviceon-backup.volumes" . | nindent 2 }}
{{- end -}}

{{/* A pod that looks at the configuration alone: it needs nothing of the release but that, and runs anywhere. */}}
{{- define "deviceon-backup.configCheck" -}}
restartPolicy: Never
{{ include "deviceon-backup.podSpec" . | trim }}
containers:
  - name: deviceon-backup
    image: {{ include "deviceon-backup.image" .root | quote }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    args: {{ toJson .args }}
    resources:
      requests: {cpu: 50m, memory: 96Mi}
      limits: {cpu: "1", memory: 192Mi}
    securityContext:
      {{- include "deviceon-backup.securityContext" . | nindent 6 }}
    volumeMounts:
      - {name: deviceon-backup-config, mountPath: /etc/deviceon-backup, readOnly: true}
volumes:
  - name: deviceon-backup-config
    configMap:
      name: {{ .config }}
{{- end -}}
