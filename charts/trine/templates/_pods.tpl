{{/* What all pods have alike. Contexts as in _names.tpl. */}}

{{/* metadata of a pod; also: port (of /metrics, to annotate), checksum (text whose change rolls the pods). */}}
{{- define "trine.podMetadata" -}}
labels:
  {{- include "trine.selectorLabels" . | nindent 2 }}
  {{- if .port }}
  trine.dev/metrics: "true"
  {{- end }}
  {{- with .values.pod.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- $annotations := dict }}
{{- if .checksum }}
{{- $_ := set $annotations "checksum/config" (sha256sum .checksum) }}
{{- end }}
{{- if and .port .root.Values.prometheus.scrapeAnnotations }}
{{- $_ := merge $annotations (dict "prometheus.io/scrape" "true" "prometheus.io/path" "/metrics" "prometheus.io/port" (toString .port)) }}
{{- end }}
{{- $annotations = merge $annotations .values.pod.annotations }}
{{- if $annotations }}
annotations:
  {{- toYaml $annotations | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The head of a pod's spec; also: user (number), token (true: may talk to the API server). */}}
{{- define "trine.podSpec" -}}
serviceAccountName: {{ include "trine.name" . }}
automountServiceAccountToken: {{ .token | default false }}
enableServiceLinks: false
{{- with .root.Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user | default 10001 }}
  runAsGroup: {{ .user | default 10001 }}
  fsGroup: {{ .user | default 10001 }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- if ne .component "batch" }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: {{ .values.pod.spread }}
    labelSelector:
      matchLabels:
        {{- include "trine.selectorLabels" . | nindent 8 }}
{{- end }}
{{- with .values.pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.pod.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .values.terminationGracePeriodSeconds }}
terminationGracePeriodSeconds: {{ . }}
{{- end }}
{{- end -}}

{{- define "trine.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* Health as service_kit serves it; context: port (name), startSeconds (the longest start). */}}
{{- define "trine.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: {{ .port }}}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: {{ div .startSeconds 2 }}
readinessProbe:
  httpGet: {path: /readyz, port: {{ .port }}}
  periodSeconds: 2
  timeoutSeconds: 3
  failureThreshold: 3
livenessProbe:
  httpGet: {path: /livez, port: {{ .port }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end -}}

{{/* The init container that brings the releases, and where they lie; context: the chart's top scope. */}}
{{- define "trine.releasesInit" -}}
- name: releases
  image: {{ include "trine.releasesImage" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  {{- include "trine.containerSecurity" . | nindent 2 }}
  resources:
    requests: {cpu: 10m, memory: 32Mi}
    limits: {memory: 256Mi}
  volumeMounts:
    - {name: releases, mountPath: /releases}
    - {name: tmp, mountPath: /tmp}
{{- end -}}

{{- define "trine.scratchVolumes" -}}
- name: releases
  emptyDir: {}
- name: tmp
  emptyDir: {}
{{- end -}}

{{/* More settings, as the user has them: a map to environment variables. */}}
{{- define "trine.settings" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
{{- end }}
{{- end -}}

{{/* One ServiceAccount, and a PodDisruptionBudget where pods serve. */}}
{{- define "trine.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "trine.name" . }}
  labels:
    {{- include "trine.labels" . | nindent 4 }}
  {{- with .values.pod.serviceAccountAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end -}}

{{- define "trine.disruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "trine.name" . }}
  labels:
    {{- include "trine.labels" . | nindent 4 }}
spec:
  maxUnavailable: {{ .values.pod.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "trine.selectorLabels" . | nindent 6 }}
{{- end -}}

{{/* HPA on CPU; also: kind (of the workload). */}}
{{- define "trine.cpuAutoscaler" -}}
{{- $scale := .values.autoscaling -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ include "trine.name" . }}
  labels:
    {{- include "trine.labels" . | nindent 4 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: {{ .kind }}
    name: {{ include "trine.name" . }}
  minReplicas: {{ $scale.minReplicas }}
  maxReplicas: {{ $scale.maxReplicas }}
  metrics:
    - type: Resource
      resource:
        name: cpu
        target:
          type: Utilization
          averageUtilization: {{ $scale.targetCPUUtilizationPercentage }}
  behavior:
    scaleUp:
      stabilizationWindowSeconds: {{ $scale.scaleUpStabilizationSeconds }}
      policies:
        - {type: Pods, value: {{ $scale.scaleUpPods }}, periodSeconds: 15}
    scaleDown:
      stabilizationWindowSeconds: {{ $scale.scaleDownStabilizationSeconds }}
      policies:
        - {type: Percent, value: {{ $scale.scaleDownPercent }}, periodSeconds: 60}
{{- end -}}
