{{/* What follows from the configuration. They take {root, unit}. */}}

{{- define "deviceon-backup.config" -}}
{{- $values := .unit.values -}}
{{- $config := mustDeepCopy $values.config -}}
{{- if and $values.metrics.enabled (ne $values.mode "cronJob") -}}
  {{- $_ := set $config "http" (dict "listen" (printf "%s:%d" $values.metrics.address (int $values.metrics.port))) -}}
{{- end -}}
{{- /* With null an option that a chart or all servers have in common is taken away, as in Helm's own values. */ -}}
{{- $options := default dict (default dict $config.target).storage_options -}}
{{- range $name, $value := $options -}}
  {{- if kindIs "invalid" $value -}}{{- $_ := unset $options $name -}}{{- end -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{- define "deviceon-backup.stopSeconds" -}}
{{- $service := default dict .unit.values.config.service -}}
{{- if kindIs "invalid" .unit.values.terminationGracePeriodSeconds -}}
{{- add 15 (ceil (default 25 $service.stop_timeout)) -}}
{{- else -}}
{{- int .unit.values.terminationGracePeriodSeconds -}}
{{- end -}}
{{- end -}}

{{/* The TPM is a device of the node: "device"; something else, such as a socket for trying: "other"; none: "". */}}
{{- define "deviceon-backup.tpm" -}}
{{- $sealing := default dict .unit.values.config.sealing -}}
{{- if ne (default "tpm" $sealing.mode) "off" -}}
{{- ternary "device" "other" (hasPrefix "device:" (default "device:/dev/tpmrm0" $sealing.tcti)) -}}
{{- end -}}
{{- end -}}

{{/* Whether the pod is bound to nodes: by a selector or by node affinity that is required. */}}
{{- define "deviceon-backup.pinned" -}}
{{- $affinity := default dict .unit.values.affinity -}}
{{- if or .unit.values.nodeSelector (default dict $affinity.nodeAffinity).requiredDuringSchedulingIgnoredDuringExecution -}}
true
{{- end -}}
{{- end -}}

{{/* Ports of PostgreSQL, one a line. */}}
{{- define "deviceon-backup.postgresqlPorts" -}}
{{- $config := .unit.values.config -}}
{{- $servers := list -}}
{{- range $config.sources -}}
  {{- if eq .type "postgresql" -}}{{- $servers = append $servers . -}}{{- end -}}
{{- end -}}
{{- with (default dict $config.drill).postgresql -}}{{- $servers = append $servers . -}}{{- end -}}
{{- $ports := list -}}
{{- range $servers -}}
  {{- if not (hasPrefix "/" (default "/var/run/postgresql" .host)) -}}
    {{- $ports = append $ports (default 5432 .port | int) -}}
  {{- end -}}
{{- end -}}
{{- join "\n" (sortAlpha (uniq $ports)) -}}
{{- end -}}

{{/* Ports of the targets, one a line. */}}
{{- define "deviceon-backup.targetPorts" -}}
{{- $config := .unit.values.config -}}
{{- $ports := list -}}
{{- if .unit.values.networkPolicy.target.ports -}}
  {{- range .unit.values.networkPolicy.target.ports -}}{{- $ports = append $ports (int .) -}}{{- end -}}
{{- else -}}
  {{- if not $config.target -}}
    {{- fail "networkPolicy: config.target is not given, so nobody knows its port; name it in networkPolicy.target.ports" -}}
  {{- end -}}
  {{- range prepend (default list $config.copies) $config.target -}}
    {{- $options := default dict .storage_options -}}
    {{- $scheme := first (splitList "://" .url) -}}
    {{- $said := regexFind ":[0-9]+$" (first (splitList "/" (last (splitList "://" .url)))) | trimPrefix ":" -}}
    {{- if has $scheme (list "s3" "s3a") -}}
      {{- $endpoint := default "https://amazonaws.com" $options.endpoint_url -}}
      {{- $port := regexFind ":[0-9]+$" (first (splitList "/" (last (splitList "://" $endpoint)))) | trimPrefix ":" -}}
      {{- $ports = append $ports (default (ternary 80 443 (hasPrefix "http:" $endpoint)) $port | int) -}}
    {{- else if eq $scheme "smb" -}}
      {{- $ports = append $ports (default (default 445 $options.port) $said | int) -}}
    {{- else if has $scheme (list "sftp" "ssh") -}}
      {{- $ports = append $ports (default (default 22 $options.port) $said | int) -}}
    {{- else if has $scheme (list "gs" "gcs" "abfs" "abfss" "az" "webdav" "webdavs" "https") -}}
      {{- $ports = append $ports (default 443 $said | int) -}}
    {{- else if not (has $scheme (list "file" "local" "memory")) -}}
      {{- fail (printf "networkPolicy: nobody knows the port of %s targets; name all ports of targets in networkPolicy.target.ports" $scheme) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- join "\n" (sortAlpha (uniq $ports)) -}}
{{- end -}}

{{/* Refuses what would fail on the worst day, or would quietly not do what it seems to. */}}
{{- define "deviceon-backup.check" -}}
{{- $values := .unit.values -}}
{{- $config := $values.config -}}
{{- $for := ternary (printf "server %s: " .unit.server) "" (ne .unit.server "") -}}
{{- $sealing := default dict $config.sealing -}}
{{- if not $config.sources -}}
  {{- fail (printf "%sconfig.sources is empty, so nothing would be backed up" $for) -}}
{{- end -}}
{{- range $config.sources -}}
  {{- if .passfile -}}
    {{- fail (printf "%sconfig.sources: a passfile has to be of mode 0600, which no file of a Secret is for a user other than root; use password_file" $for) -}}
  {{- end -}}
{{- end -}}
{{- if not $config.server -}}
  {{- fail (printf "%sconfig.server is missing: an archive is restored to the version of the server that it was made from" $for) -}}
{{- end -}}
{{- if and (eq $values.mode "cronJob") (not $config.target) -}}
  {{- fail (printf "%sconfig.target is missing, and nobody can set it where no service runs" $for) -}}
{{- end -}}
{{- if and (eq $values.mode "cronJob") (or $config.notifications $config.dead_man (default dict $config.drill).schedule) -}}
  {{- fail (printf "%smode: cronJob: config.notifications, config.dead_man and config.drill.schedule are the service's, and none runs. Watch the Jobs, as docs/KUBERNETES.md shows" $for) -}}
{{- end -}}
{{- $tpm := include "deviceon-backup.tpm" . -}}
{{- if and (eq $tpm "device") (not $values.tpm.resource) -}}
  {{- fail (printf "%stpm.resource is empty: without the resource of a TPM device plugin no pod can use the node's TPM. Set it, or config.sealing.mode: off" $for) -}}
{{- end -}}
{{- if and (eq $tpm "device") (not $values.tpm.groups) -}}
  {{- fail (printf "%stpm.groups is empty: the TPM belongs to a group of the node, whose number `stat -c %%g /dev/tpmrm0` tells there" $for) -}}
{{- end -}}
{{- if and (eq $tpm "device") (not (include "deviceon-backup.pinned" .)) (not $values.tpm.acceptUnpinned) -}}
  {{- fail (printf "%sarchives open only on the TPM that sealed them, and nothing binds the pod to its node: set nodeSelector or a required node affinity, or tpm.acceptUnpinned: true if something else does" $for) -}}
{{- end -}}
{{- if and (eq $values.mode "cronJob") $tpm (kindIs "invalid" $sealing.recovery) -}}
  {{- fail (printf "%sconfig.sealing.recovery must say who opens archives without this TPM (age recipients, or none): there is no service in which `provision` could ask" $for) -}}
{{- end -}}
{{- if $values.state.ephemeral -}}
  {{- if ne $values.mode "cronJob" -}}
    {{- fail "state.ephemeral is for mode: cronJob alone: a restore that waits for commit or rollback would be forgotten" -}}
  {{- end -}}
  {{- if $config.retention -}}
    {{- fail (printf "%sstate.ephemeral: config.retention would remove nothing, since which archives are verified is forgotten after each run. Leave it out, and let the target expire archives" $for) -}}
  {{- end -}}
{{- end -}}
{{- if $config.target -}}
  {{- range prepend (default list $config.copies) $config.target -}}
    {{- if not .url -}}
      {{- fail (printf "%sconfig.target has no url" $for) -}}
    {{- end -}}
    {{- if hasPrefix "file://" .url -}}
      {{- $path := printf "%s/" (trimSuffix "/" (trimPrefix "file://" .url)) -}}
      {{- $covered := and $values.archives.enabled (hasPrefix (printf "%s/" (trimSuffix "/" $values.archives.mountPath)) $path) -}}
      {{- range $values.extraVolumeMounts -}}
        {{- if hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) $path -}}{{- $covered = true -}}{{- end -}}
      {{- end -}}
      {{- if not $covered -}}
        {{- fail (printf "%sthe target %s is on no volume: set archives.enabled, or mount one with extraVolumes" $for .url) -}}
      {{- end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- if and $values.networkPolicy.enabled (ne $values.mode "sidecar") (or $config.notifications $config.dead_man) (not $values.networkPolicy.extraEgress) -}}
  {{- fail (printf "%snetworkPolicy keeps config.notifications and config.dead_man from going out: let them, in networkPolicy.extraEgress, such as [{ports: [{port: 443}]}]" $for) -}}
{{- end -}}
{{- end -}}

{{/* The same for what is not a unit's. Takes the chart's context. */}}
{{- define "deviceon-backup.checkAll" -}}
{{- $values := .Values -}}
{{- if and (eq $values.mode "sidecar") (or $values.metrics.enabled $values.portal.enabled) (not $values.sidecar.podLabels) -}}
  {{- fail "sidecar.podLabels is empty: the Services of metrics and portal select the server's pods by them" -}}
{{- end -}}
{{- if and $values.portal.enabled (not (and $values.portal.config.access $values.portal.config.origins)) -}}
  {{- fail "portal.config needs access (who may come in) and origins (what browsers show, such as https://backup.example)" -}}
{{- end -}}
{{- if and (ne $values.mode "deployment") $values.hooks.preUpgradeBackup -}}
  {{- fail "hooks.preUpgradeBackup is for mode: deployment alone" -}}
{{- end -}}
{{- if and $values.hooks.preUpgradeBackup (include "deviceon-backup.tpm" (dict "unit" (dict "values" $values))) (kindIs "invalid" (default dict $values.config.sealing).recovery) -}}
  {{- fail "hooks.preUpgradeBackup: config.sealing.recovery must say who opens archives without this TPM, since the hook does not know what `provision` has chosen" -}}
{{- end -}}
{{- if and $values.hooks.preUpgradeBackup $values.archives.enabled (eq $values.archives.accessMode "ReadWriteOncePod") -}}
  {{- fail "hooks.preUpgradeBackup: the hook's pod could not mount archives of accessMode ReadWriteOncePod while the service runs" -}}
{{- end -}}
{{- if and $values.hooks.preUpgradeBackup (not $values.config.target) -}}
  {{- fail "hooks.preUpgradeBackup: config.target must be given, since the hook does not know what was set in the service" -}}
{{- end -}}
{{- if and (or $values.metrics.serviceMonitor.enabled $values.metrics.prometheusRule.enabled) (not $values.metrics.enabled) -}}
  {{- fail "metrics.serviceMonitor and metrics.prometheusRule need metrics.enabled" -}}
{{- end -}}
{{- range fromJsonArray (include "deviceon-backup.units" .) -}}
  {{- include "deviceon-backup.check" (dict "root" $ "unit" .) -}}
{{- end -}}
{{- end -}}
