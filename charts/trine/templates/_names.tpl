{{/* Names, labels and images. Contexts are dicts: root (the chart's top scope), component, values (the component's). */}}

{{- define "trine.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains "trine" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-trine" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "trine.name" -}}
{{ include "trine.fullname" .root }}-{{ .component }}
{{- end -}}

{{/* Never changes from one version to the next: Deployments and StatefulSets cannot change their selectors. */}}
{{- define "trine.selectorLabels" -}}
app.kubernetes.io/name: trine
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "trine.labels" -}}
{{ include "trine.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* An image as a node pulls it; context: root, image (name:tag). */}}
{{- define "trine.imageFrom" -}}
{{- with .root.Values.global.imageRegistry }}{{ trimSuffix "/" . }}/{{ end }}{{ .image -}}
{{- end -}}

{{/* One of Trine's own images; context: root, image (name without tag). */}}
{{- define "trine.image" -}}
{{- $tag := .root.Values.image.tag | default .root.Chart.AppVersion -}}
{{- include "trine.imageFrom" (dict "root" .root "image" (printf "%s:%s" .image $tag)) -}}
{{- end -}}

{{- define "trine.releasesImage" -}}
{{- $image := .Values.releases.image -}}
{{- $tag := $image.tag | default .Values.image.tag | default .Chart.AppVersion -}}
{{- include "trine.imageFrom" (dict "root" . "image" (printf "%s:%s" $image.repository $tag)) -}}
{{- end -}}
