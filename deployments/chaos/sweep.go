package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/cinderlift/cinderlift/internal/lab"
)

// sweepUp removes what no job can know of, before the audit.
func (c *chaos) sweepUp(ctx context.Context) error {
	if err := c.reap(ctx); err != nil {
		return err
	}
	if c.ledger.counted(string(killGlance)) == 0 {
		return nil
	}

	return c.partUploads(ctx)
}

// finding is a line of what `cinderlift reap -o json` prints.
type finding struct {
	Kind    string `json:"kind"`
	ImageID string `json:"image_id"`
	Where   string `json:"where"`
	Action  string `json:"action"`
	Why     string `json:"why"`
}

// reap does what workers do an hour later. Two things are left to them. Glance lets an image be deleted while it adds a
// location to it, answers well to both, and keeps the data, because the delete knows only the locations that it had read
// before. And what killed five workers while it was undone is passed over (docs/guarantees.md); here it was we who killed
// them. All else the jobs should have seen to themselves.
func (c *chaos) reap(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, c.lab.Binary(), "reap", "--age", "1s", "-o", "json")
	cmd.Env = c.lab.Environment(nil)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("reap: %w", err)
	}
	var found []finding
	if err := json.Unmarshal(out, &found); err != nil {
		return fmt.Errorf("reap ended with %d and printed no list: %w", cmd.ProcessState.ExitCode(), err)
	}
	for _, f := range found {
		if f.Kind == "image" && f.Action == "removed" && c.ledger.deletedByUser(f.ImageID) {
			c.ledger.count("reaped", 1)

			continue
		}
		if f.Action == "removed" && c.ledger.passedOver(f.ImageID) {
			c.ledger.count("reaped_after_deaths", 1)

			continue
		}
		c.ledger.violate(lab.Violation{Code: "reaped", Where: f.Where, What: strings.TrimSpace(f.Kind + " " + f.Action + " " + f.Why)})
	}

	return nil
}

// ofGlance removes an image that bears no mark of ours and has no snapshot, so that no store ever knew it whole.
const ofGlance = `rbd info "images/$1" >/dev/null 2>&1 || exit 0
rbd image-meta get "images/$1" cinderlift.job >/dev/null 2>&1 && exit 0
[ -z "$(rbd snap ls "images/$1")" ] || exit 0
rbd rm --no-progress "images/$1" >/dev/null 2>&1 && echo removed`

// partUploads removes what a Glance that was killed in the middle of an upload has left in its pool; it never comes back to
// it, whoever the client was.
func (c *chaos) partUploads(ctx context.Context) error {
	for _, image := range c.ledger.failedUploads() {
		out, err := c.lab.Exec(ctx, "sh", "-c", ofGlance, "sh", image)
		if err != nil {
			return fmt.Errorf("look at image %s: %w", image, err)
		}
		if strings.TrimSpace(out) != "" {
			c.ledger.count("left_by_glance", 1)
		}
	}

	return nil
}
