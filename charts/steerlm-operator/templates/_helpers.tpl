{{/* What the names of all objects start with. */}}
{{- define "steerlm-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 53 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 53 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels that tell the operator's pod from all others. */}}
{{- define "steerlm-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "steerlm-operator.ownLabels" -}}
{{ include "steerlm-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: nemo-steerlm
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Labels of an object. Those that others select on win over the user's. */}}
{{- define "steerlm-operator.labels" -}}
{{- toYaml (merge (include "steerlm-operator.ownLabels" . | fromYaml) .Values.commonLabels) -}}
{{- end -}}

{{- define "steerlm-operator.image" -}}
{{- with .Values.image -}}
{{- $name := ternary (printf "%s/%s" .registry .repository) .repository (ne .registry "") -}}
{{- if .digest -}}
{{- printf "%s@%s" $name .digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
Whether the pipelines in the values can be made with this release. A cluster that has no definition yet gets it with the release, and Helm makes
no resource together with its definition; on an upgrade they must never be left out. Without a cluster (helm template, and Argo CD with it) whoever
applies the output sees to the order: only a real API server has the group apiregistration.k8s.io.
*/}}
{{- define "steerlm-operator.takesPipelines" -}}
{{- $known := .Capabilities.APIVersions.Has "steerlm.dev/v1alpha1/SteerLMPipeline" -}}
{{- if or .Release.IsUpgrade $known (not .Values.crds.install) (not (.Capabilities.APIVersions.Has "apiregistration.k8s.io/v1")) -}}
true
{{- end -}}
{{- end -}}

{{- define "steerlm-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "steerlm-operator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* The namespaces that the operator watches, as a JSON list; an empty one means all. */}}
{{- define "steerlm-operator.namespaces" -}}
{{- if eq .Values.scope "namespaced" -}}
{{- default (list .Release.Namespace) .Values.namespaces | uniq | toJson -}}
{{- else if .Values.namespaces -}}
{{- fail "namespaces is set, but scope is cluster: the operator would watch all namespaces. Set scope to namespaced, or leave namespaces empty" -}}
{{- else -}}
[]
{{- end -}}
{{- end -}}

{{/* The operator's configuration file. */}}
{{- define "steerlm-operator.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- if ($config.storage).claimName -}}
{{- $_ := unset $config.storage "claimTemplate" -}}
{{- end -}}
{{- $_ := set $config "namespaces" (include "steerlm-operator.namespaces" . | fromJsonArray) -}}
{{- $_ := set $config "address" "0.0.0.0:8080" -}}
{{- toYaml $config -}}
{{- end -}}

{{/* The process's user, and nothing that Pod Security "restricted" forbids. */}}
{{- define "steerlm-operator.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.user.runAsUser }}
runAsUser: {{ int . }}
{{- end }}
{{- with .Values.user.runAsGroup }}
runAsGroup: {{ int . }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "steerlm-operator.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "steerlm-operator.scheduling" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
