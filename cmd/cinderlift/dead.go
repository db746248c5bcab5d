package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cinderlift/cinderlift/internal/oslo"
)

// deadWithin bounds a command about dead letters: a broker in an alarm answers nobody who publishes.
const deadWithin = time.Minute

func deadCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "dead",
		Short: "Look after the messages that were put aside",
		Long: `dead lists what is in the dead-letter queue (CINDERLIFT_TOPIC.dead), oldest first: messages that
are no requests, that contradict an earlier one, that ended every worker that took them
(poison), or that the broker put there. It shows no tokens; there are none in what the
workers put there, and what the broker put there is replaced by a copy without them.

Looking leaves everything there. While it goes on, a second look sees nothing. On a quorum
queue of RabbitMQ before 4.3 each look counts as a delivery, of which RabbitMQ 4 allows 20;
after ten looks a message is replaced by a copy, so that none is lost by looking.

A message is named by its id, or by its number in the list, which changes when others go.
It needs only CINDERLIFT_TRANSPORT_URL, CINDERLIFT_TOPIC and CINDERLIFT_QUEUE_TYPE.

Exit codes: 0 all right, 1 it was tried and failed or nothing has this name, 2 configuration
or command line.`,
		Example: `  cinderlift dead
  cinderlift dead -o json | jq -r '.[] | select(.reason | startswith("poison")) | .id'
  cinderlift dead show 1
  cinderlift dead replay 6f1ed002ab559585
  cinderlift dead drop --all`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return listDead(cmd, output) },
	}
	outputFlag(cmd, &output)
	cmd.AddCommand(deadListCommand(), deadShowCommand(),
		deadActCommand("replay", "Publish messages to the work queue again, and remove them from here",
			`replay publishes messages to the work queue, waits for the broker's confirm, and removes them
from here then. That is safe as often as you like: a request that the journal has already is
recognised. A dead letter holds no token, so a replayed request that no strategy can serve
fails instead of being handed back to Cinder. A message whose body was not kept can't be
replayed. Replay poison only after you have found out what it does to the workers.`,
			(*oslo.DeadLetters).Replay),
		deadActCommand("drop", "Remove messages for good",
			`drop removes messages. A volume that is still `+"`uploading`"+` because of one stays so:
free it with `+"`openstack volume set --state available`"+`.`,
			(*oslo.DeadLetters).Drop))

	return cmd
}

func deadListCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List what is there; the same as dead alone",
		Example: "  cinderlift dead list\n  cinderlift dead list -o json",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return listDead(cmd, output) },
	}
	outputFlag(cmd, &output)

	return cmd
}

func deadShowCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "show ID|NUMBER…",
		Short:   "Show messages with their redacted bodies",
		Example: "  cinderlift dead show 1\n  cinderlift dead show 6f1ed002ab559585 -o json",
		Args:    someArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := deadLetters(cmd.Context())
			if err != nil {
				return err
			}
			list := slices.DeleteFunc(all, func(d oslo.Dead) bool { return !named(d, args) })
			if err := missing(list, args); err != nil {
				return err
			}

			return show(cmd.OutOrStdout(), output, deadViews(list, true), func(w io.Writer) error { return writeBodies(w, list) })
		},
	}
	outputFlag(cmd, &output)

	return cmd
}

// deadAct is Replay or Drop.
type deadAct func(*oslo.DeadLetters, context.Context, func(oslo.Dead) bool) ([]oslo.Dead, error)

func deadActCommand(name, short, long string, act deadAct) *cobra.Command {
	var output string
	var all bool
	cmd := &cobra.Command{
		Use:     name + " ID|NUMBER… | --all",
		Short:   short,
		Long:    long,
		Example: "  cinderlift dead " + name + " 1 2\n  cinderlift dead " + name + " --all -o json",
		Args: func(cmd *cobra.Command, args []string) error {
			if all && len(args) == 0 {
				return nil
			}
			if all {
				return errConfig{errors.New("--all: given together with names of messages")}
			}

			return someArgs(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			done, err := actOnDead(cmd.Context(), act, func(d oslo.Dead) bool { return all || named(d, args) })
			shown := show(cmd.OutOrStdout(), output, deadViews(done, false), func(w io.Writer) error { return writeDead(w, done) })
			if err == nil {
				err = missing(done, args)
			}

			return errors.Join(err, shown)
		},
	}
	outputFlag(cmd, &output)
	cmd.Flags().BoolVar(&all, "all", false, "every message that is there")

	return cmd
}

func someArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return errConfig{fmt.Errorf("%s: name the messages, by id or by number as `cinderlift dead` shows them", cmd.Name())}
	}

	return nil
}

// named: ids are hexadecimal and have sixteen digits at least, so a short number is a place in the list.
func named(d oslo.Dead, args []string) bool {
	for _, a := range args {
		if n, err := strconv.Atoi(a); len(a) < 8 && err == nil && n == d.Index || a == d.ID {
			return true
		}
	}

	return false
}

// missing is the error for names that nothing has.
func missing(found []oslo.Dead, args []string) error {
	var none []string
	for _, a := range args {
		if !slices.ContainsFunc(found, func(d oslo.Dead) bool { return named(d, []string{a}) }) {
			none = append(none, a)
		}
	}
	if len(none) == 0 {
		return nil
	}

	return fmt.Errorf("no dead letter is named %s; `cinderlift dead` lists them", strings.Join(none, ", "))
}

func openDead(ctx context.Context) (*oslo.DeadLetters, error) {
	var c config
	if err := process(prefix, &c); err != nil {
		return nil, errConfig{err}
	}
	if err := fromFile("CINDERLIFT_TRANSPORT_URL", &c.TransportURL, c.TransportURLFile); err != nil {
		return nil, errConfig{err}
	}
	if c.TransportURL == "" {
		return nil, errConfig{errors.New("CINDERLIFT_TRANSPORT_URL: missing; it is transport_url in cinder.conf")}
	}
	if err := oneOf("CINDERLIFT_QUEUE_TYPE", c.QueueType, "", "classic", "quorum"); err != nil {
		return nil, errConfig{err}
	}
	t, err := oslo.ParseTransportURL(string(c.TransportURL))
	if err != nil {
		return nil, errConfig{fmt.Errorf("CINDERLIFT_TRANSPORT_URL: %w", err)}
	}

	return oslo.OpenDead(ctx, oslo.Options{Transport: t, Exchange: c.ControlExchange, Topic: c.Topic, Name: "cinderlift dead",
		QueueType: oslo.QueueType(c.QueueType)})
}

func deadLetters(ctx context.Context) ([]oslo.Dead, error) {
	ctx, cancel := context.WithTimeout(ctx, deadWithin)
	defer cancel()
	l, err := openDead(ctx)
	if err != nil {
		return nil, err
	}
	defer l.Close()

	return l.List(ctx)
}

func actOnDead(ctx context.Context, act deadAct, pick func(oslo.Dead) bool) ([]oslo.Dead, error) {
	ctx, cancel := context.WithTimeout(ctx, deadWithin)
	defer cancel()
	l, err := openDead(ctx)
	if err != nil {
		return nil, err
	}
	defer l.Close()

	return act(l, ctx, pick)
}

func listDead(cmd *cobra.Command, output string) error {
	list, err := deadLetters(cmd.Context())
	if err != nil {
		return err
	}

	return show(cmd.OutOrStdout(), output, deadViews(list, false), func(w io.Writer) error { return writeDead(w, list) })
}

// deadView is a dead letter in JSON.
type deadView struct {
	Number     int       `json:"number"`
	ID         string    `json:"id"`
	Reason     string    `json:"reason"`
	Time       time.Time `json:"time,omitzero"`
	Deliveries int       `json:"deliveries"` // takers that did not come back
	Worker     string    `json:"worker,omitempty"`
	Method     string    `json:"method,omitempty"`
	ImageID    string    `json:"image_id,omitempty"`
	VolumeID   string    `json:"volume_id,omitempty"`
	RequestID  string    `json:"request_id,omitempty"`
	ProjectID  string    `json:"project_id,omitempty"`
	Call       bool      `json:"call"` // its sender waited for an answer
	Exchange   string    `json:"exchange"`
	RoutingKey string    `json:"routing_key"`
	BodySize   int       `json:"body_size"` // bytes, before it was redacted
	Body       string    `json:"body,omitempty"`
}

func deadViews(list []oslo.Dead, bodies bool) []deadView {
	views := make([]deadView, 0, len(list))
	for _, d := range list {
		v := deadView{
			Number: d.Index, ID: d.ID, Reason: d.Reason, Time: d.Time, Deliveries: d.Deliveries, Worker: d.Worker,
			Method: d.Request.Method, RequestID: d.Request.Context.RequestID(), ProjectID: d.Request.Context.ProjectID(),
			Call: d.Request.IsCall(), Exchange: d.Exchange, RoutingKey: d.RoutingKey, BodySize: d.BodySize,
		}
		v.ImageID, v.VolumeID = concerned(d.Request)
		if bodies {
			v.Body = string(d.Body)
		}
		views = append(views, v)
	}

	return views
}

// concerned are the image and the volume, as far as they can be read.
func concerned(r oslo.Request) (image, volume string) {
	var meta struct {
		ID string `json:"id"`
	}
	_ = json.Unmarshal(r.Args["image_meta"], &meta)
	_ = json.Unmarshal(r.Args["volume_id"], &volume)

	return short(meta.ID), short(volume)
}

// short keeps what a stranger wrote from breaking a table.
func short(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}

		return r
	}, s)
	if len(s) > 80 {
		s = strings.ToValidUTF8(s[:80], "") + "…"
	}

	return s
}

func writeDead(w io.Writer, list []oslo.Dead) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "NUMBER\tID\tTIME\tDELIVERIES\tIMAGE\tVOLUME\tREASON")
	for _, v := range deadViews(list, false) {
		at := "-"
		if !v.Time.IsZero() {
			at = v.Time.UTC().Format(time.RFC3339)
		}
		fmt.Fprintf(tw, "%d\t%s\t%s\t%d\t%s\t%s\t%s\n", v.Number, short(v.ID), at, v.Deliveries, orDash(v.ImageID), orDash(v.VolumeID),
			short(v.Reason))
	}

	return tw.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}

	return s
}

func writeBodies(w io.Writer, list []oslo.Dead) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i, v := range deadViews(list, true) {
		if i > 0 {
			fmt.Fprintln(tw)
		}
		for _, line := range [][2]string{
			{"id", v.ID}, {"reason", v.Reason}, {"since", v.Time.UTC().Format(time.RFC3339)}, {"deliveries", strconv.Itoa(v.Deliveries)},
			{"put here by", orDash(v.Worker)}, {"published to", v.Exchange + " with the key " + v.RoutingKey}, {"method", orDash(v.Method)},
			{"image", orDash(v.ImageID)}, {"volume", orDash(v.VolumeID)}, {"project", orDash(v.ProjectID)}, {"request", orDash(v.RequestID)},
			{"bytes", strconv.Itoa(v.BodySize)}, {"body", strconv.Quote(v.Body)},
		} {
			fmt.Fprintf(tw, "%s\t%s\n", line[0], strings.ReplaceAll(line[1], "\n", " "))
		}
	}

	return tw.Flush()
}
