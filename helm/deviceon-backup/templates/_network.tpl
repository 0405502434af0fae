{{/* Items of a NetworkPolicy's `egress`. Takes {root, unit}. */}}
{{- define "deviceon-backup.egressRules" -}}
{{- $policy := .unit.values.networkPolicy -}}
- ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
{{- with include "deviceon-backup.postgresqlPorts" . }}
- ports:
    {{- range splitList "\n" . }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
  {{- with $policy.postgresql.to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- with include "deviceon-backup.targetPorts" . }}
- ports:
    {{- range splitList "\n" . }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
  {{- with $policy.target.to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- with $policy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end -}}
