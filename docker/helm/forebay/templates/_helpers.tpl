{{/* The name of every object. */}}
{{- define "forebay.name" -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/* The labels by which objects find each other. They never change. */}}
{{- define "forebay.selector" -}}
app.kubernetes.io/name: forebay
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "forebay.labels" -}}
{{ include "forebay.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* A duration as Forebay reads it, such as "1m 30s", in whole seconds. */}}
{{- define "forebay.seconds" -}}
{{- $text := toString . | nospace -}}
{{- if not (regexMatch "^([0-9]+(ms|s|sec|m|min|h|hr|d|day|days))+$" $text) -}}
{{- fail (printf "config.listen.drain: %q is no duration that this chart can read; write it as 90s, 10m or 1h" (toString .)) -}}
{{- end -}}
{{- $sum := 0 -}}
{{- range regexFindAll "[0-9]+[a-z]+" $text -1 -}}
{{- $count := regexFind "^[0-9]+" . | int64 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- if eq $unit "ms" -}}{{- $sum = add $sum (div (add $count 999) 1000) -}}
{{- else if has $unit (list "s" "sec") -}}{{- $sum = add $sum $count -}}
{{- else if has $unit (list "m" "min") -}}{{- $sum = add $sum (mul $count 60) -}}
{{- else if has $unit (list "h" "hr") -}}{{- $sum = add $sum (mul $count 3600) -}}
{{- else -}}{{- $sum = add $sum (mul $count 86400) -}}
{{- end -}}
{{- end -}}
{{- $sum -}}
{{- end -}}

{{/* The time that a pod has to end: config.listen.drain.limit and 30 s. A ready_delay must fit into the 30 s. */}}
{{- define "forebay.gracePeriod" -}}
{{- $drain := dig "listen" "drain" dict .Values.config -}}
{{- $delay := include "forebay.seconds" (get $drain "ready_delay" | default "0s") | int64 -}}
{{- if gt $delay 20 -}}
{{- fail "config.listen.drain.ready_delay: at most 20s, since the pod's grace period is drain.limit and 30 s" -}}
{{- end -}}
{{- add (include "forebay.seconds" (get $drain "limit" | default "10m") | int64) 30 -}}
{{- end -}}

{{/* A value of the configuration, as TOML writes it on one line. */}}
{{- define "forebay.tomlValue" -}}
{{- if kindIs "invalid" . -}}{{- fail "config: a key has no value; leave it out, or write \"off\" where it can be off" -}}
{{- else if kindIs "string" . -}}{{- toJson . -}}
{{- else if kindIs "bool" . -}}{{- . -}}
{{- else if kindIs "slice" . -}}
[{{- range $at, $item := . -}}{{- if $at }}, {{ end -}}{{- include "forebay.tomlValue" $item -}}{{- end -}}]
{{- else if kindIs "map" . -}}
{{- $map := . -}}
{ {{- range $at, $key := keys . | sortAlpha -}}{{- if $at }},{{ end }} {{ $key }} = {{ include "forebay.tomlValue" (get $map $key) }}{{- end }} }
{{- else if eq (float64 .) (float64 (int64 .)) -}}{{- int64 . -}}
{{- else -}}{{- . -}}
{{- end -}}
{{- end -}}

{{/* One section of the configuration: its head and its keys. */}}
{{- define "forebay.tomlSection" -}}
{{ .head }}
{{- $keys := .keys }}
{{- range keys .keys | sortAlpha }}
{{ . }} = {{ include "forebay.tomlValue" (get $keys .) }}
{{- end }}
{{ end -}}

{{/* The configuration file. */}}
{{- define "forebay.toml" -}}
{{- $config := deepCopy .Values.config -}}
{{- range $section, $key := dict "listen" "address" "admin" "address" "epp" "address" -}}
{{- if hasKey (get $config $section | default dict) $key -}}
{{- fail (printf "config.%s.%s: leave it out, the chart sets it" $section $key) -}}
{{- end -}}
{{- end -}}
{{- if dig "admin" "token_file" "" $config -}}
{{- fail "config.admin.token_file: leave it out, and name your Secret in admin.existingSecret" -}}
{{- end -}}
{{- if dig "clients" "keys_file" "" $config -}}
{{- fail "config.clients.keys_file: leave it out, and name your Secret in clients.existingSecret" -}}
{{- end -}}
{{- $_ := set $config "listen" (merge (dict "address" "0.0.0.0:8080") (get $config "listen" | default dict)) -}}
{{- if eq .Values.mode "picker" -}}
{{- $_ := set $config "epp" (merge (dict "address" "0.0.0.0:9002") (get $config "epp" | default dict)) -}}
{{- else if hasKey $config "epp" -}}
{{- fail "config.epp: set mode to picker, or leave it out" -}}
{{- end -}}
{{- $token := dict "address" "0.0.0.0:8081" "token_file" "/etc/forebay-secrets/admin/token" -}}
{{- $_ := set $config "admin" (merge $token (get $config "admin" | default dict)) -}}
{{- if .Values.clients.existingSecret -}}
{{- $file := dict "keys_file" "/etc/forebay-secrets/clients/clients.keys" -}}
{{- $_ := set $config "clients" (merge $file (get $config "clients" | default dict)) -}}
{{- end -}}
{{- $replicas := dict "count" .Values.replicas -}}
{{- if .Values.discovery.enabled -}}{{- $_ := set $replicas "service" (include "forebay.name" .) -}}{{- end -}}
{{- $_ := set $config "replicas" (merge (get $config "replicas" | default dict) $replicas) -}}
{{- if or (gt (int .Values.replicas) 1) $config.replicas.service -}}
{{- range $config.pools -}}
{{- if not .split_salt -}}{{- $_ := set . "split_salt" "forebay" -}}{{- end -}}
{{- end -}}
{{- end -}}
# Written by the chart from its value `config`.
{{ range $name := keys $config | sortAlpha }}
{{- if ne $name "pools" }}
{{ include "forebay.tomlSection" (dict "head" (printf "[%s]" $name) "keys" (get $config $name)) }}
{{- end }}
{{- end }}
{{- range $config.pools }}
{{ include "forebay.tomlSection" (dict "head" "[[pools]]" "keys" .) }}
{{- end }}
{{- end -}}

{{/* The scheme by which probes ask the admin listener. */}}
{{- define "forebay.scheme" -}}
{{- if dig "admin" "tls" dict .Values.config -}}HTTPS{{- else -}}HTTP{{- end -}}
{{- end -}}
