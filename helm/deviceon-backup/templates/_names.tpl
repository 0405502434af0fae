{{/* Names and labels. They take the chart's context. */}}

{{- define "deviceon-backup.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "deviceon-backup.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "deviceon-backup.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "deviceon-backup.selector" -}}
app.kubernetes.io/name: {{ include "deviceon-backup.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "deviceon-backup.labels" -}}
{{ include "deviceon-backup.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "deviceon-backup.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "deviceon-backup.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "deviceon-backup.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/*
What is run, as JSON: a list of {name, values, server}. `values` are the chart's, with a server's own laid over them.
*/}}
{{- define "deviceon-backup.units" -}}
{{- $units := list -}}
{{- $name := include "deviceon-backup.fullname" . -}}
{{- if eq .Values.mode "cronJob" -}}
  {{- range .Values.servers -}}
    {{- $values := mustMergeOverwrite (mustDeepCopy $.Values) (mustDeepCopy (omit . "name")) -}}
    {{- $own := printf "%s-%s" $name .name -}}
    {{- /* A CronJob's name may have 52, and the Job OWN-config-check of the hook 63. */ -}}
    {{- if gt (len $own) 50 -}}
      {{- fail (printf "servers: the CronJob %s has %d characters, 50 are the limit; set a shorter fullnameOverride or name" $own (len $own)) -}}
    {{- end -}}
    {{- $units = append $units (dict "name" $own "values" $values "server" .name) -}}
  {{- end -}}
{{- else -}}
  {{- $units = append $units (dict "name" $name "values" .Values "server" "") -}}
{{- end -}}
{{- toJson $units -}}
{{- end -}}

{{/* Labels that only the pods of one unit have. Takes {root, unit, component}. */}}
{{- define "deviceon-backup.podSelector" -}}
{{ include "deviceon-backup.selector" .root }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .unit.server }}
deviceon-backup/server: {{ . }}
{{- end }}
{{- end -}}
