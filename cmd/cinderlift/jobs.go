package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cinderlift/cinderlift/internal/ceph"
	"github.com/cinderlift/cinderlift/worker"
)

func jobsCommand() *cobra.Command {
	var output string
	var all bool
	cmd := &cobra.Command{
		Use:   "jobs [IMAGE_ID]",
		Short: "Show what is in the journal",
		Long: `jobs lists the open jobs, or with --all also those that ended, or shows one record with
everything that the journal keeps of it. It needs only the settings of Ceph.

States: accepted, working, committed (the image is active), undoing, settling (telling everyone), aside
(it killed several workers; see replay and fail), newer (of a later release), and how it ended.`,
		Example: "  cinderlift jobs\n  cinderlift jobs --all -o json\n  cinderlift jobs 6f1b1d3e-0000-4000-8000-000000000001\n  cinderlift jobs replay 6f1b1d3e-0000-4000-8000-000000000001",
		Args: func(cmd *cobra.Command, args []string) error {
			if err := cobra.MaximumNArgs(1)(cmd, args); err != nil {
				return errConfig{err}
			}

			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			records, err := records(cmd.Context(), args, all)
			if err != nil {
				return err
			}

			return show(cmd.OutOrStdout(), output, records, func(w io.Writer) error { return writeRecords(w, records) })
		},
	}
	outputFlag(cmd, &output)
	cmd.Flags().BoolVar(&all, "all", false, "also those that ended")
	cmd.AddCommand(replayCommand(), failCommand())

	return cmd
}

func replayCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "replay IMAGE_ID",
		Short: "Let workers take up a job again that was put aside or put off",
		Long: `replay forgets the workers that a job has killed and lets any worker take it up at once. Use it
when what killed them is mended; "cinderlift jobs IMAGE_ID -o json" shows where they died.`,
		Example: "  cinderlift jobs replay 6f1b1d3e-0000-4000-8000-000000000001",
		Args:    oneImage,
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeRecord(cmd, args[0], "nothing holds it back", func(r *worker.Record) bool { return r.Replay() })
		},
	}
}

func failCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "fail IMAGE_ID",
		Short: "End a job now that was put aside",
		Long: `fail lets a worker undo a job that was put aside, and tell its user that it failed, without
waiting for CINDERLIFT_ASIDE to pass. Work that runs is not stopped by it: delete the image for that.`,
		Example: "  cinderlift jobs fail 6f1b1d3e-0000-4000-8000-000000000001",
		Args:    oneImage,
		RunE: func(cmd *cobra.Command, args []string) error {
			return changeRecord(cmd, args[0], "it was not put aside", func(r *worker.Record) bool { return r.End(time.Now().UTC()) })
		},
	}
}

func oneImage(cmd *cobra.Command, args []string) error {
	if err := cobra.ExactArgs(1)(cmd, args); err != nil {
		return errConfig{err}
	}

	return nil
}

// changeRecord changes a record under its lease. A worker that holds it wins; then there is nothing to change.
func changeRecord(cmd *cobra.Command, key, otherwise string, change func(*worker.Record) bool) error {
	ctx := cmd.Context()
	cluster, err := openJournal(ctx)
	if err != nil {
		return err
	}
	defer cluster.Close() //nolint:errcheck // what was written is written
	claim, err := cluster.Claim(ctx, key)
	switch {
	case errors.Is(err, worker.ErrHeld):
		return fmt.Errorf("job %s: a worker is at it; see `cinderlift jobs %s`", key, key)
	case err != nil:
		return fmt.Errorf("job %s: %w", key, err)
	}
	r := claim.Record()
	changed := change(&r)
	if changed {
		r.Updated = time.Now().UTC()
		err = claim.Save(ctx, r)
	}
	if err := errors.Join(err, claim.Release(ctx)); err != nil {
		return fmt.Errorf("job %s: %w", key, err)
	}
	if !changed {
		return fmt.Errorf("job %s is %s: %s", key, state(r), otherwise)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "job %s: any worker takes it up now\n", key)

	return nil
}

func openJournal(ctx context.Context) (*ceph.Cluster, error) {
	var c config
	if err := process(prefix, &c); err != nil {
		return nil, errConfig{err}
	}

	return ceph.Open(ctx, ceph.Options{ConfFile: c.CephConf, User: c.CephUser, JournalPool: c.journalPool(),
		Namespace: c.JournalNamespace, Owner: "cinderlift jobs", LeaseTTL: c.LeaseTTL})
}

// records reads them, oldest first.
func records(ctx context.Context, keys []string, all bool) ([]worker.Record, error) {
	cluster, err := openJournal(ctx)
	if err != nil {
		return nil, err
	}
	defer cluster.Close() //nolint:errcheck // nothing was written
	one := len(keys) > 0
	if !one {
		if keys, err = cluster.Keys(ctx); err != nil {
			return nil, err
		}
	}
	list := []worker.Record{}
	for _, key := range keys {
		r, err := cluster.Load(ctx, key)
		if errors.Is(err, worker.ErrNotFound) && !one {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		if one || all || !r.Closed {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b worker.Record) int { return a.Accepted.Compare(b.Accepted) })

	return list, nil
}

func writeRecords(w io.Writer, records []worker.Record) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "IMAGE\tVOLUME\tSTATE\tSTRATEGY\tLAST STEP\tOWNER\tACCEPTED\tMESSAGE")
	for _, r := range records {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Job.ImageID, r.Job.VolumeID, state(r), r.Strategy, lastStep(r),
			r.Owner, r.Accepted.Format(time.RFC3339), why(r))
	}

	return tw.Flush()
}

func state(r worker.Record) string {
	switch {
	case r.Version > worker.RecordVersion:
		return "newer" // only a later release knows
	case r.Closed && r.Outcome != nil:
		return string(r.Outcome.Result)
	case r.Closed:
		return "closed"
	case r.Aside != nil:
		return "aside"
	case r.Outcome != nil:
		return "settling"
	case r.Verdict != nil:
		return "undoing"
	case r.Committed:
		return "committed"
	case r.Strategy != "":
		return "working"
	default:
		return "accepted"
	}
}

func lastStep(r worker.Record) string {
	if len(r.Steps) == 0 {
		return ""
	}

	return r.Steps[len(r.Steps)-1]
}

// why is what an operator has to know of it.
func why(r worker.Record) string {
	var parts []string
	switch {
	case r.Aside != nil:
		parts = append(parts, fmt.Sprintf("killed %d workers in %q%s; ends at %s unless replayed",
			r.Died(r.Aside.Activity), r.Aside.Activity, lastVictim(r), r.Aside.Until.Format(time.RFC3339)))
	case r.Outcome != nil:
		parts = append(parts, r.Outcome.Message)
	case r.Verdict != nil:
		parts = append(parts, r.Verdict.Message)
	default:
		parts = append(parts, r.LastError)
	}
	if !r.Closed && !r.Again.IsZero() {
		parts = append(parts, "put off until "+r.Again.Format(time.RFC3339))
	}
	if len(r.Left) > 0 {
		parts = append(parts, "passed over: "+strings.Join(r.Left, ", "))
	}

	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), "; ")
}

func lastVictim(r worker.Record) string {
	if len(r.Deaths) == 0 {
		return ""
	}

	return ", the last was " + r.Deaths[len(r.Deaths)-1].Owner
}
