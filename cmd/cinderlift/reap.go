package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cinderlift/cinderlift/internal/ceph"
	"github.com/cinderlift/cinderlift/internal/cinder"
	"github.com/cinderlift/cinderlift/internal/reap"
	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// How `cinderlift reap` may end, beside well; the table has said the rest.
var (
	errReap  = errors.New("something could not be removed, or not be looked at")
	errFound = errors.New("something is left: to be removed, or for a person to look at")
)

func reapCommand() *cobra.Command {
	var output string
	var dry bool
	var age time.Duration
	cmd := &cobra.Command{
		Use:   "reap [IMAGE_ID…]",
		Short: "Remove what jobs left behind, and nothing else",
		Long: `reap finds what is cinderlift's and belongs to no open job, and removes it: snapshots on volumes
(those in the trash too), images that were never finished or half removed, images that wait in Glance
for a job that failed, and what is left of old jobs in the journal. With image ids it is about these
alone, and takes your word that no other cloud uses them. Workers do the same by themselves, see CINDERLIFT_REAP_EVERY.

Left alone is what belongs to an open job, what is younger than --age, what Glance uses or may be using,
what somebody has open, and what others made clones of. It needs the settings of a worker.

  removed     it was an orphan and is gone        remove   it would be removed (--dry-run)
  failed      it could not be removed             wait     not now: too young, or somebody is at it
  look        nothing that may be removed by itself: a person should look at it

Exit codes: 0 nothing is left, 1 it was tried and failed, 2 configuration or command line,
3 something is left: a dry run found something to remove, or there is something to look at.`,
		Example: `  cinderlift reap --dry-run                     what would be removed?
  cinderlift reap                               remove it
  cinderlift reap -o json | jq '.[] | select(.action == "look")'
  cinderlift reap 6f1b1d3e-0000-4000-8000-000000000001 --age 1m`,
		Args: imageIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, o, err := loadConfig()
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("age") {
				c.ReapAge = age
			}
			if output != "table" && output != "json" {
				return show(io.Discard, output, nil, nil) // before anything is removed
			}
			found, err := reapOnce(cmd.Context(), c, o, dry, args, cmd.ErrOrStderr())
			if shown := show(cmd.OutOrStdout(), output, found, func(w io.Writer) error { return writeFindings(w, found) }); shown != nil {
				return shown
			}

			return cmp.Or(err, verdict(found))
		},
	}
	outputFlag(cmd, &output)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only list")
	cmd.Flags().DurationVar(&age, "age", time.Hour, "leave alone what is younger; default CINDERLIFT_REAP_AGE")

	return cmd
}

func imageIDs(_ *cobra.Command, args []string) error {
	for _, id := range args {
		if !strategies.IsImageID(id) {
			return errConfig{fmt.Errorf("%q is not the id of an image", id)}
		}
	}

	return nil
}

// verdict is the exit code's error.
func verdict(found []reap.Finding) error {
	var worst error
	for _, f := range found {
		switch f.Action {
		case reap.Failed:
			return errReap
		case reap.Remove, reap.Look:
			worst = errFound
		}
	}

	return worst
}

func writeFindings(w io.Writer, found []reap.Finding) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "ACTION\tKIND\tWHERE\tMADE\tWHY")
	for _, f := range found {
		made := ""
		if !f.Made.IsZero() {
			made = f.Made.Format(time.RFC3339)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", f.Action, f.Kind, f.Where, made, f.Why)
	}

	return tw.Flush()
}

// reapOnce is one round. The findings are never nil.
func reapOnce(
	ctx context.Context, c config, o openstack, dry bool, only []string, stderr io.Writer,
) ([]reap.Finding, error) {
	c.LogLevel, c.LogFormat = "warn", "text"
	p, err := assemble(ctx, c, o, newLogger(c, stderr))
	if err != nil {
		return []reap.Finding{}, err
	}
	defer p.close()
	fsid, err := p.cluster.FSID(ctx)
	if err != nil {
		return []reap.Finding{}, err
	}
	r := p.reaper(fsid)
	r.DryRun, r.Only, r.Thorough, r.Progress = dry, only, true, (&progress{w: stderr}).tell
	found, err := r.Round(ctx)

	return append([]reap.Finding{}, found...), err
}

// progress says now and then how far it is, once it takes longer than a second.
type progress struct {
	w io.Writer

	mu   sync.Mutex
	last time.Time
}

func (p *progress) tell(what string, done, total int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.last.IsZero() {
		p.last = time.Now()
	}
	if time.Since(p.last) < time.Second {
		return
	}
	p.last = time.Now()
	fmt.Fprintf(p.w, "%s: %d of %d\n", what, done, total)
}

// reaper wires one.
func (p *parts) reaper(fsid string) *reap.Reaper {
	c := p.config

	return &reap.Reaper{
		Journal: p.cluster, Locks: p.cluster, Images: p.glance, Volumes: uploads{p.cinder}, FSID: fsid,
		Open: func(ctx context.Context) (reap.Cluster, func(), error) {
			images, err := p.cluster.Images(ctx)
			if err != nil {
				return nil, nil, err
			}

			return images, func() { p.shut(ctx, images) }, nil
		},
		Hands: func(claim worker.Claim) (strategies.Source, strategies.Destination) {
			images := claim.(*ceph.Claim).Images() //nolint:forcetypeassert // the journal is p.cluster, see above

			return images, images
		},
		Pools:    func(ctx context.Context) ([]string, error) { return p.pools(ctx, fsid) },
		VolumeID: volumeIn(c.VolumeNames),
		Age:      c.ReapAge, Lease: worker.LeaseTimes{TTL: c.LeaseTTL}, Logger: p.log,
	}
}

// shut ends the connection of a round, also when the round was ended early.
func (p *parts) shut(ctx context.Context, images *ceph.Images) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := images.Close(ctx); err != nil {
		p.log.Warn("end the connection that looked for orphans", "error", err)
	}
}

// volumeIn finds a volume's id in the name of its RBD image.
func volumeIn(template string) func(string) string {
	before, after, _ := strings.Cut(template, "%s")

	return func(image string) string {
		id := strings.TrimSuffix(strings.TrimPrefix(image, before), after)
		if !strategies.IsImageID(id) { // volumes have the same form
			return ""
		}

		return id
	}
}

// pools lists those that the operator names and those that the cloud tells of. With an error it answers what it has.
func (p *parts) pools(ctx context.Context, fsid string) ([]string, error) {
	list := []string{cmp.Or(p.config.ImagePool, "images")}
	for _, pool := range p.config.VolumePools {
		list = append(list, pool)
	}
	stores, err := p.glance.Stores(ctx)
	for _, s := range stores {
		if s.Type == "rbd" && (s.FSID == "" || s.FSID == fsid) {
			list = append(list, s.Pool)
		}
	}
	if len(p.config.VolumePools) == 0 {
		backends, asked := p.cinder.Backends(ctx)
		for _, b := range backends {
			if b.FSID == "" || b.FSID == fsid {
				list = append(list, b.Pool)
			}
		}
		err = errors.Join(err, asked)
	}

	return slices.DeleteFunc(list, func(pool string) bool { return pool == "" }), err
}

// uploads is Cinder as a reaper sees it.
type uploads struct{ *cinder.REST }

// Uploads implements reap.Volumes.
func (u uploads) Uploads(ctx context.Context) ([]reap.Upload, error) {
	found, err := u.REST.Uploads(ctx)
	list := make([]reap.Upload, len(found))
	for i, f := range found {
		list[i] = reap.Upload(f)
	}

	return list, err
}

// keepReaping looks for orphans whenever it is this worker's turn, until ctx ends.
func (p *parts) keepReaping(ctx context.Context) {
	if p.config.ReapEvery == 0 {
		return
	}
	for ctx.Err() == nil {
		fsid, err := p.cluster.FSID(ctx)
		if err == nil {
			p.reaper(fsid).Run(ctx, p.config.ReapEvery, p.metrics)

			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(probeEvery):
		}
	}
}

// orphans are the labels of the metrics that have to be present at zero.
func orphans() (kinds, results []string) {
	for _, k := range reap.Kinds() {
		kinds = append(kinds, string(k))
	}
	for _, r := range reap.Results() {
		results = append(results, string(r))
	}

	return kinds, results
}
