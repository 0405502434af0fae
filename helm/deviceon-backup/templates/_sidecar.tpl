{{/*
For charts that include the service into their server's pod. They take this chart's context, which a chart that depends on
it has as `index .Subcharts "deviceon-backup"`. docs/KUBERNETES.md shows a pod that uses all of them.
*/}}

{{- define "deviceon-backup.only" -}}
{{- if ne .Values.mode "sidecar" -}}
{{- fail (printf "deviceon-backup.mode is %s: a pod that includes the service needs mode: sidecar" .Values.mode) -}}
{{- end -}}
{{- include "deviceon-backup.checkAll" . -}}
{{- end -}}

{{- define "deviceon-backup.unit" -}}
{{- first (fromJsonArray (include "deviceon-backup.units" .)) | toJson -}}
{{- end -}}

{{/* An item of `initContainers`: the service as a native sidecar. */}}
{{- define "deviceon-backup.sidecar" -}}
{{- include "deviceon-backup.only" . -}}
{{- $context := dict "root" . "unit" (fromJson (include "deviceon-backup.unit" .)) "startup" .Values.sidecar.startupProbe "readiness" .Values.sidecar.readinessProbe -}}
- restartPolicy: Always
  {{- include "deviceon-backup.service" $context | nindent 2 }}
{{- end -}}

{{/* Items of `containers`: the portal, if it is on. */}}
{{- define "deviceon-backup.sidecarPortal" -}}
{{- if .Values.portal.enabled -}}
- {{- include "deviceon-backup.portal" (dict "root" . "unit" (fromJson (include "deviceon-backup.unit" .))) | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* Items of `volumes`. */}}
{{- define "deviceon-backup.sidecarVolumes" -}}
{{- include "deviceon-backup.volumes" (dict "root" . "unit" (fromJson (include "deviceon-backup.unit" .))) -}}
{{- end -}}

{{/* Keys of the pod's `securityContext`: the group of the volumes, and the groups of the TPM. */}}
{{- define "deviceon-backup.sidecarPodSecurity" -}}
{{- $unit := fromJson (include "deviceon-backup.unit" .) -}}
{{- $security := fromYaml (include "deviceon-backup.podSecurity" (dict "root" . "unit" $unit)) -}}
{{- toYaml (pick $security "fsGroup" "fsGroupChangePolicy" "supplementalGroups") -}}
{{- end -}}

{{/* Keys of the pod's spec that bind it to its node: nodeSelector, affinity, tolerations. */}}
{{- define "deviceon-backup.sidecarPlacing" -}}
{{- include "deviceon-backup.placing" (dict "root" . "unit" (fromJson (include "deviceon-backup.unit" .))) | trim -}}
{{- end -}}

{{/* Annotations of the pod: a new configuration is a new pod. */}}
{{- define "deviceon-backup.sidecarAnnotations" -}}
{{- include "deviceon-backup.checksum" (dict "root" . "unit" (fromJson (include "deviceon-backup.unit" .))) -}}
{{- end -}}

{{/* The least terminationGracePeriodSeconds of the pod: the sidecar ends after the server, within the same time. */}}
{{- define "deviceon-backup.sidecarStopSeconds" -}}
{{- include "deviceon-backup.stopSeconds" (dict "root" . "unit" (fromJson (include "deviceon-backup.unit" .))) -}}
{{- end -}}

{{/* Items of a NetworkPolicy's `egress`: what the service has to reach. */}}
{{- define "deviceon-backup.egress" -}}
{{- include "deviceon-backup.egressRules" (dict "root" . "unit" (fromJson (include "deviceon-backup.unit" .))) -}}
{{- end -}}
