package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cinderlift/cinderlift/strategies"
)

// errChecks ends `cinderlift check` when a check failed; the table has said which.
var errChecks = errors.New("a check failed")

// check is one line of `cinderlift check`.
type check struct {
	Name   string `json:"name"`
	Status string `json:"status"` // ok, warning, failed
	Detail string `json:"detail"` // what was found, or what to do
}

func checkCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Does everything answer, and may we do what we have to?",
		Long: `check reads the configuration, signs in, and asks Ceph, RabbitMQ, Glance and Cinder for what a
worker needs. It changes nothing but what a worker declares at RabbitMQ anyway.`,
		Example: "  cinderlift check\n  cinderlift check -o json | jq '.[] | select(.status != \"ok\")'",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, o, err := loadConfig()
			if err != nil {
				return err
			}
			list := checks(cmd.Context(), c, o)
			if err := show(cmd.OutOrStdout(), output, list, func(w io.Writer) error { return writeChecks(w, list) }); err != nil {
				return err
			}
			for _, k := range list {
				if k.Status == "failed" {
					return errChecks
				}
			}

			return nil
		},
	}
	outputFlag(cmd, &output)

	return cmd
}

func writeChecks(w io.Writer, list []check) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "CHECK\tSTATUS\tDETAIL")
	for _, k := range list {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", k.Name, k.Status, k.Detail)
	}

	return tw.Flush()
}

// checks asks everyone. What can't be asked because something before it failed is left out.
func checks(ctx context.Context, c config, o openstack) []check {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	list := []check{{"configuration", "ok", "complete"}}
	p, err := assemble(ctx, c, o, slog.New(slog.DiscardHandler))
	if err != nil {
		return append(list, result("sign in to OpenStack and Ceph", "", err))
	}
	defer p.close()
	fsid, err := p.cluster.FSID(ctx)
	list = append(list, result("Ceph", "cluster "+fsid, err), p.checkJournal(ctx), p.checkBus(ctx))
	stores, err := p.glance.Stores(ctx)
	list = append(list, result("Glance", storesText(stores, fsid), err), p.checkFormat(ctx))

	backends, err := p.cinder.Backends(ctx)

	return append(list, p.checkCinder(backends, fsid, err), p.checkEarly(backends))
}

func result(name, detail string, err error) check {
	if err != nil {
		return check{name, "failed", err.Error()}
	}

	return check{name, "ok", detail}
}

func (p *parts) checkJournal(ctx context.Context) check {
	keys, err := p.cluster.Keys(ctx)

	return result("journal", fmt.Sprintf("%d records", len(keys)), err)
}

// checkBus connects as a worker does, for a moment.
func (p *parts) checkBus(ctx context.Context) check {
	try, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = p.bus.Run(try) // ends with try, without an error
	}()
	err := p.busReady(try)
	cancel()
	<-done

	return result("RabbitMQ", "connected, queue "+p.config.Topic, err)
}

// storesText says which of Glance's stores are in the same cluster.
func storesText(stores []strategies.Store, fsid string) string {
	if len(stores) == 0 {
		return "does not tell its stores; CINDERLIFT_IMAGE_POOL, or images, is taken"
	}
	var list []string
	for _, s := range stores {
		text := fmt.Sprintf("store %s: %s", s.ID, s.Type)
		switch {
		case s.Type != "rbd":
			text += " (export-upload)"
		case s.FSID == "":
			text += ", pool " + s.Pool + ", cluster not told: taken to be this one"
		case s.FSID == fsid:
			text += ", pool " + s.Pool + ", same cluster"
		default:
			text += ", cluster " + s.FSID + " (export-upload)"
		}
		list = append(list, text)
	}

	return strings.Join(list, "; ")
}

func (p *parts) checkCinder(backends map[string]strategies.Backend, fsid string, err error) check {
	if err != nil {
		return result("Cinder", "", err)
	}
	var list []string
	for _, host := range slices.Sorted(maps.Keys(backends)) {
		b := backends[host]
		text := host + ": pool " + b.Pool
		if b.FSID != fsid {
			text += " in cluster " + b.FSID + ", which this worker does not reach"
		}
		list = append(list, text)
	}
	if len(list) == 0 {
		return check{"Cinder", "warning", "does not tell its RBD pools: set CINDERLIFT_VOLUME_POOLS"}
	}

	return result("Cinder", strings.Join(list, "; "), nil)
}

// checkFormat says what a volume must not hold, which auto leaves to Glance's release.
func (p *parts) checkFormat(ctx context.Context) check {
	const name = "format check"
	checks := p.config.formatPolicy().Checks
	if checks != strategies.FormatAuto {
		return check{name, "ok", string(checks) + " by CINDERLIFT_FORMAT_CHECK"}
	}
	inspects, err := p.glance.Inspects(ctx)
	if !inspects {
		return result(name, "off: this release of Glance does not inspect uploads; CINDERLIFT_FORMAT_CHECK=strict does", err)
	}

	return result(name, "glance: as this release of Glance inspects uploads", err)
}

// checkEarly names the one cap that makes images usable within seconds. Whether client.glance has it shows only to an
// admin of Ceph, and to a worker that tries.
func (p *parts) checkEarly(backends map[string]strategies.Backend) check {
	const name = "early registration"
	if strategies.RegisterMode(p.config.Register) == strategies.RegisterLate {
		return check{name, "ok", "off by CINDERLIFT_REGISTER=late: images are usable after the flatten"}
	}
	caps := map[string]bool{}
	for _, b := range backends {
		caps["profile rbd-read-only pool="+b.Pool] = true
	}
	for _, pool := range p.config.VolumePools {
		caps["profile rbd-read-only pool="+pool] = true
	}

	return check{name, "ok", "needs, among the osd caps of Glance's Ceph user: " +
		strings.Join(slices.Sorted(maps.Keys(caps)), ", ") + "; without it images are usable after the flatten"}
}
