{{- define "kvcommons.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "kvcommons.operator" -}}
{{- printf "%s-operator" (include "kvcommons.fullname" .) -}}
{{- end -}}

{{- define "kvcommons.selectorLabels" -}}
app.kubernetes.io/name: kvcommons-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "kvcommons.labels" -}}
{{ include "kvcommons.selectorLabels" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: kvcommons
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "kvcommons.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "kvcommons.operator" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name: name an existing ServiceAccount, or set serviceAccount.create to true" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* One of our images: (dict "root" $ "image" .Values.images.node) */ -}}
{{- define "kvcommons.image" -}}
{{- $repository := .image.repository -}}
{{- $first := splitList "/" $repository | first -}}
{{- $own := and (contains "/" $repository) (or (contains "." $first) (contains ":" $first) (eq $first "localhost")) -}}
{{- if and .root.Values.image.registry (not $own) -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" .root.Values.image.registry) $repository -}}
{{- end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{- /* The namespaces that the operator looks after, as JSON; empty for all. */ -}}
{{- define "kvcommons.namespaces" -}}
{{- if .Values.watchNamespaces -}}
{{- .Values.watchNamespaces | toJson -}}
{{- else if eq .Values.rbac.scope "namespace" -}}
{{- list .Release.Namespace | toJson -}}
{{- else -}}
[]
{{- end -}}
{{- end -}}

{{- define "kvcommons.podSecurityContext" -}}
runAsNonRoot: true
{{- with .Values.operator.runAsUser }}
runAsUser: {{ . }}
runAsGroup: {{ . }}
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "kvcommons.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "kvcommons.env" -}}
{{- $namespaces := include "kvcommons.namespaces" . | fromJsonArray -}}
- {name: KVCOMMONS_OPERATOR__NAMESPACE, value: {{ .Release.Namespace | quote }}}
- {name: KVCOMMONS_OPERATOR__NAMESPACES, value: {{ join "," $namespaces | quote }}}
- {name: KVCOMMONS_OPERATOR__LEASE_NAME, value: {{ include "kvcommons.operator" . | quote }}}
- {name: KVCOMMONS_OPERATOR__LEASE_SECONDS, value: {{ .Values.operator.leaseSeconds | quote }}}
- {name: KVCOMMONS_OPERATOR__ROOT_SECRET_NAME, value: {{ include "kvcommons.rootSecret" . | quote }}}
- {name: KVCOMMONS_OPERATOR__LOG_LEVEL, value: {{ .Values.operator.logLevel | quote }}}
- {name: KVCOMMONS_OPERATOR__LOG_JSON, value: {{ .Values.operator.logJson | quote }}}
{{- end -}}

{{- define "kvcommons.rootSecret" -}}
{{- default (printf "%s-root" (include "kvcommons.operator" .)) .Values.rootSecret.name -}}
{{- end -}}
