// Command coredns is CoreDNS with the plugins that a cluster's DNS needs and no others.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/reload"

	"github.com/coredns/coredns/coremain"
)

func init() {
	// The order is that of CoreDNS's own plugin.cfg: it decides which plugin sees a query first.
	dnsserver.Directives = []string{"reload", "bind", "health", "ready", "errors", "log", "cache", "kubernetes"}
}

func main() {
	coremain.Run()
}
