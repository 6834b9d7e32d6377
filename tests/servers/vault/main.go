// A Vault server for tests: Vault's own core and HTTP interface with three plugins, on a loopback address.
//
// It starts uninitialised or sealed, as any Vault does; initialising, unsealing, mounting and everything else is done by
// the test through the HTTP interface. What it keeps lies encrypted in the data directory, so that a process that was
// ended can be followed by another one. Prints its address when it listens and ends on SIGTERM.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	log "github.com/hashicorp/go-hclog"
	kubeauth "github.com/hashicorp/vault-plugin-auth-kubernetes"
	kv "github.com/hashicorp/vault-plugin-secrets-kv"
	"github.com/hashicorp/vault/builtin/credential/approle"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical/file"
	"github.com/hashicorp/vault/vault"
)

var (
	secrets = map[string]logical.Factory{"kv": kv.Factory}
	logins  = map[string]logical.Factory{"approle": approle.Factory, "kubernetes": kubeauth.Factory}
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	listen := flag.String("listen", "127.0.0.1:0", "loopback address to listen on")
	data := flag.String("data", "", "directory of the encrypted data")
	certificate := flag.String("tls-cert", "", "certificate; without it the server speaks plain HTTP")
	key := flag.String("tls-key", "", "key of the certificate")
	ns := flag.String("namespace", "", "answer only requests that name this namespace")
	level := flag.String("log-level", "warn", "trace, debug, info, warn or error")
	flag.Parse()

	logger := log.New(&log.LoggerOptions{Name: "vault", Level: log.LevelFromString(*level), Output: os.Stderr})
	storage, err := file.NewFileBackend(map[string]string{"path": *data}, logger)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	core, err := vault.NewCore(&vault.CoreConfig{
		Physical:           storage,
		StorageType:        "file",
		LogicalBackends:    secrets,
		CredentialBackends: logins,
		BuiltinRegistry:    registry{},
		DisableMlock:       true,
		Logger:             logger,
		NumRollbackWorkers: 1,
	})
	if err != nil {
		return fmt.Errorf("core: %w", err)
	}

	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	if !listener.Addr().(*net.TCPAddr).IP.IsLoopback() {
		return errors.New("only loopback addresses are served")
	}
	properties := &vault.HandlerProperties{
		Core:           core,
		ListenerConfig: &configutil.Listener{Type: "tcp", Address: listener.Addr().String()},
	}
	server := &http.Server{Handler: inNamespace(*ns, vaulthttp.Handler.Handler(properties)), ReadHeaderTimeout: 10 * time.Second}
	scheme := "http"
	if *certificate != "" {
		pair, err := tls.LoadX509KeyPair(*certificate, *key)
		if err != nil {
			return err
		}
		scheme = "https"
		listener = tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
	}

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	fmt.Printf("listening on %s://%s\n", scheme, listener.Addr())
	select {
	case err := <-failed:
		return err
	case <-stop:
	}
	server.Close()
	return core.Shutdown()
}

// inNamespace plays what the edition with namespaces does with a request that is in another one.
func inNamespace(ns string, next http.Handler) http.Handler {
	if ns == "" {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(consts.NamespaceHeaderName) != ns {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintln(w, `{"errors":["permission denied"]}`)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// registry tells the core that the plugins above are part of it.
type registry struct{}

func (registry) factories(kind consts.PluginType) map[string]logical.Factory {
	switch kind {
	case consts.PluginTypeSecrets:
		return secrets
	case consts.PluginTypeCredential:
		return logins
	default:
		return nil
	}
}

func (r registry) Contains(name string, kind consts.PluginType) bool {
	_, found := r.factories(kind)[name]
	return found
}

func (r registry) Get(name string, kind consts.PluginType) (func() (interface{}, error), bool) {
	factory, found := r.factories(kind)[name]
	if !found {
		return nil, false
	}
	return func() (interface{}, error) {
		return logical.Factory(func(ctx context.Context, c *logical.BackendConfig) (logical.Backend, error) {
			return factory(ctx, c)
		}), nil
	}, true
}

func (r registry) Keys(kind consts.PluginType) []string {
	var names []string
	for name := range r.factories(kind) {
		names = append(names, name)
	}
	return names
}

func (r registry) DeprecationStatus(name string, kind consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Supported, r.Contains(name, kind)
}

func (registry) IsBuiltinEntPlugin(string, consts.PluginType) bool { return false }
