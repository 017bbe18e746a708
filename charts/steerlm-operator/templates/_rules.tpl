{{/*
What the operator asks of the API server, and nothing else: a test compares this with the audit log of a whole run.
Server-side apply is patch; where it makes the object, create as well. No Secrets: the kubelet reads those that a pipeline names.
*/}}
{{- define "steerlm-operator.rules" -}}
- apiGroups: [steerlm.dev]
  resources: [steerlmpipelines]
  verbs: [get, list, watch, delete]
- apiGroups: [steerlm.dev]
  resources: [steerlmpipelines/status]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [list, watch, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [list, watch, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list, watch, create, patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [""]
  resources: [events]
  verbs: [list, create]
{{- if .Values.rbac.jobSet }}
- apiGroups: [jobset.x-k8s.io]
  resources: [jobsets]
  verbs: [create, patch, delete]
{{- end }}
{{- if .Values.rbac.volcano }}
- apiGroups: [scheduling.volcano.sh]
  resources: [podgroups]
  verbs: [create, patch]
{{- end }}
{{- if .Values.rbac.coscheduling }}
- apiGroups: [scheduling.x-k8s.io]
  resources: [podgroups]
  verbs: [create, patch]
{{- end }}
{{- end -}}
