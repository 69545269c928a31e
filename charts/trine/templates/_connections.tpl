{{/* How pods find Redis, Kafka and the warehouse: environment variables and volumes. Context: root, prefix (TRINE_X). */}}

{{- define "trine.redisSecret" -}}
{{- .Values.redis.embedded.existingSecret | default (printf "%s-redis" (include "trine.fullname" .)) -}}
{{- end -}}

{{/* The chart's own Redis's password: what the cluster has already, else a new one, the same throughout this rendering. */}}
{{- define "trine.redisPassword" -}}
{{- if not (hasKey .Values "renderedRedisPassword") -}}
{{- $there := lookup "v1" "Secret" .Release.Namespace (include "trine.redisSecret" .) -}}
{{- $password := randAlphaNum 32 -}}
{{- if and $there $there.data -}}
{{- $password = index $there.data "redis-password" | default "" | b64dec | default $password -}}
{{- end -}}
{{- $_ := set .Values "renderedRedisPassword" $password -}}
{{- end -}}
{{- .Values.renderedRedisPassword -}}
{{- end -}}

{{/* One variable, by its whole name in `variable`. */}}
{{- define "trine.redisEnv" -}}
{{- $redis := .root.Values.redis -}}
{{- if $redis.embedded.enabled }}
- name: REDIS_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ include "trine.redisSecret" .root }}, key: redis-password}
- name: {{ .variable }}
  value: redis://:$(REDIS_PASSWORD)@{{ include "trine.fullname" .root }}-redis:6379/0
{{- else if $redis.external.existingSecret }}
- name: {{ .variable }}
  valueFrom:
    secretKeyRef: {name: {{ $redis.external.existingSecret }}, key: {{ $redis.external.urlKey }}}
{{- else }}
- name: {{ .variable }}
  value: {{ $redis.external.url | quote }}
{{- end }}
{{- end -}}

{{- define "trine.kafkaBootstrap" -}}
{{- if .Values.kafka.embedded.enabled -}}
{{ include "trine.fullname" . }}-kafka:9092
{{- else -}}
{{ .Values.kafka.external.bootstrapServers }}
{{- end -}}
{{- end -}}

{{- define "trine.kafkaEnv" -}}
{{- $kafka := .root.Values.kafka }}
- name: {{ .prefix }}_KAFKA_BOOTSTRAP
  value: {{ include "trine.kafkaBootstrap" .root | quote }}
{{- if not $kafka.embedded.enabled }}
{{- $external := $kafka.external }}
{{- if ne $external.securityProtocol "PLAINTEXT" }}
- name: {{ .prefix }}_KAFKA_SECURITY_PROTOCOL
  value: {{ $external.securityProtocol }}
{{- end }}
{{- if hasPrefix "SASL" $external.securityProtocol }}
- name: {{ .prefix }}_KAFKA_SASL_MECHANISM
  value: {{ $external.sasl.mechanism }}
- name: {{ .prefix }}_KAFKA_SASL_USERNAME
  valueFrom:
    secretKeyRef: {name: {{ $external.sasl.existingSecret }}, key: {{ $external.sasl.usernameKey }}}
- name: {{ .prefix }}_KAFKA_SASL_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ $external.sasl.existingSecret }}, key: {{ $external.sasl.passwordKey }}}
{{- end }}
{{- if $external.tls.existingSecret }}
- name: {{ .prefix }}_KAFKA_CA_FILE
  value: /etc/trine/kafka/ca.crt
{{- if $external.tls.clientCertificate }}
- name: {{ .prefix }}_KAFKA_CERTIFICATE_FILE
  value: /etc/trine/kafka/tls.crt
- name: {{ .prefix }}_KAFKA_KEY_FILE
  value: /etc/trine/kafka/tls.key
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Certificates of the user's own Redis and Kafka. Context: the chart's top scope. */}}
{{- define "trine.certificateVolumes" -}}
{{- if and (not .Values.redis.embedded.enabled) .Values.redis.external.tlsSecret }}
- name: redis-certificates
  secret: {secretName: {{ .Values.redis.external.tlsSecret }}}
{{- end }}
{{- if and (not .Values.kafka.embedded.enabled) .Values.kafka.external.tls.existingSecret }}
- name: kafka-certificates
  secret: {secretName: {{ .Values.kafka.external.tls.existingSecret }}}
{{- end }}
{{- end -}}

{{- define "trine.certificateMounts" -}}
{{- if and (not .Values.redis.embedded.enabled) .Values.redis.external.tlsSecret }}
- {name: redis-certificates, mountPath: /etc/trine/redis, readOnly: true}
{{- end }}
{{- if and (not .Values.kafka.embedded.enabled) .Values.kafka.external.tls.existingSecret }}
- {name: kafka-certificates, mountPath: /etc/trine/kafka, readOnly: true}
{{- end }}
{{- end -}}

{{/* The warehouse: its place, the object store's credentials, the volume. Context: the chart's top scope. */}}
{{- define "trine.warehouse" -}}
{{ .Values.warehouse.uri | default "/var/lib/trine/warehouse" }}
{{- end -}}

{{- define "trine.warehouseEnvFrom" -}}
{{- if and .Values.warehouse.uri .Values.warehouse.existingSecret }}
envFrom:
  - secretRef: {name: {{ .Values.warehouse.existingSecret }}}
{{- end }}
{{- end -}}

{{- define "trine.warehouseVolume" -}}
{{- if not .Values.warehouse.uri }}
- name: warehouse
  persistentVolumeClaim:
    claimName: {{ .Values.warehouse.persistence.existingClaim | default (printf "%s-warehouse" (include "trine.fullname" .)) }}
{{- end }}
{{- end -}}

{{- define "trine.warehouseMount" -}}
{{- if not .Values.warehouse.uri }}
- {name: warehouse, mountPath: /var/lib/trine/warehouse}
{{- end }}
{{- end -}}

{{/* What rolls the pods of the services when it changes and is no variable of theirs: the embedded Redis's password. */}}
{{- define "trine.connectionChecksum" -}}
{{- if and .Values.redis.embedded.enabled (not .Values.redis.embedded.existingSecret) -}}
{{ include "trine.redisPassword" . }}
{{- end -}}
{{- end -}}
