{{/* A worker's container in either role, up to its variables, which end it; context: root, values. */}}
{{- define "trine.workerContainer" -}}
image: {{ include "trine.image" (dict "root" .root "image" "trine/stream-worker") }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
{{ include "trine.containerSecurity" . }}
ports:
  - {name: http, containerPort: 8082}
{{ include "trine.probes" (dict "port" "http" "startSeconds" 600) }}
resources:
  {{- toYaml .values.resources | nindent 2 }}
env:
  {{- include "trine.kafkaEnv" (dict "root" .root "prefix" "TRINE_WORKER") | nindent 2 }}
  - name: TRINE_WORKER_WORKER_ID
    valueFrom:
      fieldRef: {fieldPath: metadata.name}
  - name: TRINE_WORKER_RELEASES
    value: /releases
  {{- with .root.Values.releases.release }}
  - name: TRINE_WORKER_RELEASE
    value: {{ . }}
  {{- end }}
  - name: TRINE_WORKER_SHARDS
    value: {{ int .root.Values.shards | quote }}
  - name: TRINE_WORKER_METRICS_PORT
    value: "8082"
{{- end -}}
