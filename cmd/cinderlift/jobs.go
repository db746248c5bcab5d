package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
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
everything that the journal keeps of it. It needs only the settings of Ceph.`,
		Example: "  cinderlift jobs\n  cinderlift jobs --all -o json\n  cinderlift jobs 6f1b1d3e-0000-4000-8000-000000000001",
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

	return cmd
}

// records reads them, oldest first.
func records(ctx context.Context, keys []string, all bool) ([]worker.Record, error) {
	var c config
	if err := process(prefix, &c); err != nil {
		return nil, errConfig{err}
	}
	cluster, err := ceph.Open(ctx, ceph.Options{ConfFile: c.CephConf, User: c.CephUser, JournalPool: c.journalPool(),
		Namespace: c.JournalNamespace, Owner: "cinderlift jobs"})
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
	case r.Closed:
		return string(r.Outcome.Result)
	case r.Outcome != nil:
		return "settling"
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

func why(r worker.Record) string {
	if r.Outcome != nil {
		return r.Outcome.Message
	}

	return r.LastError
}
