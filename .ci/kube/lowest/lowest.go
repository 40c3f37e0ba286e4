//go:build tools

// Package lowest names what is built of these pins.
package lowest

import _ "k8s.io/kubernetes/cmd/kube-apiserver"
