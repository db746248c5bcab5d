package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

// took is one run of one tool.
type took struct {
	active, released time.Duration // from the request on; the same for tools without Glance
	usage
	begin time.Time // of the request
	felt
}

// tool makes an image of a volume, cleans up, and says what that took. digest, if not empty, is what the image has to hold.
type tool struct {
	name string
	hook string            // of Cinder
	caps string            // of client.glance
	set  map[string]string // of the worker; nil: none is started
	run  func(ctx context.Context, b *bench, w *lab.Worker, volume, digest string) (took, error)
}

const (
	stock    = "stock"
	rbdCopy  = "rbd cp"
	rbdDeep  = "rbd deep cp"
	rbdClone = "rbd clone+flatten"
	piped    = "rbd export | curl"
	early    = "cinderlift early"
	late     = "cinderlift late"
	copying  = "cinderlift copy"
	export   = "cinderlift export"
)

// documented are the caps of client.glance as Glance's manual has them.
const documented = "documented"

func tools() []tool {
	return []tool{
		{stock, "none", documented, nil, upload},
		{rbdCopy, "none", documented, nil, rbd("cp", `rbd cp --no-progress "$v@b" "images/$n"`)},
		{rbdDeep, "none", documented, nil, rbd("deep cp", `rbd deep cp --no-progress "$v@b" "images/$n"`)},
		{rbdClone, "none", documented, nil, rbd("clone", `rbd clone "$v@b" "images/$n"; rbd flatten --no-progress "images/$n"`)},
		{piped, "none", documented, nil, pipe},
		{early, "volume_manager", "early", map[string]string{"CINDERLIFT_REGISTER": "early"}, upload},
		{late, "volume_manager", documented, map[string]string{"CINDERLIFT_REGISTER": "late"}, upload},
		{copying, "volume_manager", documented, map[string]string{"CINDERLIFT_STRATEGIES": "copy"}, upload},
		{export, "volume_manager", documented, map[string]string{"CINDERLIFT_STRATEGIES": "export-upload"}, upload},
	}
}

// upload is what a user does. Measured is the worker; for stock Cinder it is cinder-volume and glance-api.
func upload(ctx context.Context, b *bench, w *lab.Worker, volume, digest string) (t took, err error) {
	pids := func() []int { return named("cinder-volume", "glance-api", "qemu-img") }
	if w != nil {
		pids = func() []int { return []int{w.Pid} }
	}
	m := measure(pids)
	begin := time.Now()
	id, err := b.demo.Upload(ctx, volume, lab.Raw("bench"))
	if err == nil {
		err = b.demo.WaitImage(ctx, id, "active")
	}
	t.active = time.Since(begin)
	if err == nil {
		err = b.demo.WaitVolume(ctx, volume, "available")
	}
	t.released, t.usage = time.Since(begin), m.end()
	if err != nil {
		return t, err
	}

	return t, b.checked(ctx, id, digest)
}

// checked compares the image and deletes it.
func (b *bench) checked(ctx context.Context, id, digest string) error {
	if digest != "" {
		have, err := b.lab.Digest(ctx, "images/"+id+"@snap")
		if err != nil {
			return err
		}
		if have != digest {
			return fmt.Errorf("image %s holds %s, the volume %s", id, have, digest)
		}
	}

	return b.demo.RemoveImage(ctx, id)
}

// rbd runs a script on a snapshot $v@b that makes images/$n. The snapshot is part of what is timed, as for everyone.
func rbd(what, script string) func(context.Context, *bench, *lab.Worker, string, string) (took, error) {
	return func(ctx context.Context, b *bench, _ *lab.Worker, volume, digest string) (took, error) {
		name := "bench-" + strings.ReplaceAll(what, " ", "-")
		t, err := b.command(ctx, nil, `set -e; rbd snap create --no-progress "$v@b"; rbd snap protect "$v@b"; `+script, volume, name)
		if err != nil {
			return t, err
		}
		if digest != "" {
			have, err := b.lab.Digest(ctx, "images/"+name)
			if err != nil || have != digest {
				return t, fmt.Errorf("%s made %s of %s: %w", what, have, digest, err)
			}
		}
		_, err = b.command(ctx, nil, `rbd snap ls "images/$n" | grep -q b && rbd snap purge --no-progress "images/$n" 2> /dev/null
			rbd snap unprotect "images/$n@b" 2> /dev/null; rbd snap purge --no-progress "images/$n" 2> /dev/null
			set -e; rbd rm --no-progress "images/$n"; rbd snap unprotect "$v@b"; rbd snap rm --no-progress "$v@b"`, volume, name)

		return t, err
	}
}

// command runs a script in the lab as its Ceph user, with $v and $n set, and measures it by its rusage.
func (b *bench) command(ctx context.Context, stdin io.Reader, script, volume, name string) (took, error) {
	cmd := exec.CommandContext(ctx, b.lab.Env["LAB_COMMAND"], "exec", b.lab.Generation(), "sh", "-c",
		`export CEPH_ARGS="--id $1" v=volumes/volume-$2 n=$3; `+script, "sh", b.lab.Env["LAB_CEPH_USER"], volume, name)
	cmd.Stdin = stdin
	var errs strings.Builder
	cmd.Stderr = &errs
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return took{}, err
	}
	m := measure(func() []int { return below(cmd.Process.Pid) })
	err := cmd.Wait()
	t := took{active: time.Since(begin), released: time.Since(begin), usage: m.end()}
	t.CPU = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if err != nil {
		return t, fmt.Errorf("%s: %w: %s", script, err, errs.String())
	}

	return t, nil
}

// pipe is what one would do without cinderlift and without Cinder: rbd export into Glance's API.
func pipe(ctx context.Context, b *bench, _ *lab.Worker, volume, digest string) (took, error) {
	id, err := b.demo.CreateImage(ctx, "bench")
	if err != nil {
		return took{}, err
	}
	token, err := b.token(ctx)
	if err != nil {
		return took{}, err
	}
	// By standard input: a token does not belong into the list of processes.
	t, err := b.command(ctx, strings.NewReader("X-Auth-Token: "+token+"\n"), `set -e; rbd snap create --no-progress "$v@b"
		cat > /tmp/bench-header; trap 'rm /tmp/bench-header' EXIT
		rbd export --no-progress "$v@b" - | curl -sS --fail -X PUT -H @/tmp/bench-header -H 'Content-Type: application/octet-stream' \
		-T - "`+b.lab.Env["LAB_GLANCE_URL"]+`/v2/images/$n/file"`, volume, id)
	if err != nil {
		return t, err
	}
	if _, err := b.command(ctx, nil, `rbd snap rm --no-progress "$v@b"`, volume, id); err != nil {
		return t, err
	}

	return t, b.checked(ctx, id, digest)
}

// token signs in as the demo user. The library of the worker hands its tokens to nobody.
func (b *bench) token(ctx context.Context) (string, error) {
	env := b.lab.Env
	domain := map[string]string{"name": "Default"}
	body, err := json.Marshal(map[string]any{"auth": map[string]any{
		"identity": map[string]any{"methods": []string{"password"}, "password": map[string]any{"user": map[string]any{
			"name": env["LAB_DEMO_USER"], "password": env["LAB_DEMO_PASSWORD"], "domain": domain}}},
		"scope": map[string]any{"project": map[string]any{"name": env["LAB_DEMO_PROJECT"], "domain": domain}},
	}})
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, env["OS_AUTH_URL"]+"/auth/tokens", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusCreated {
		return "", fmt.Errorf("Keystone answered %s", answer.Status)
	}

	return answer.Header.Get("X-Subject-Token"), nil
}

// machine describes where this runs.
func machine(ctx context.Context, l *lab.Lab) []string {
	var lines []string
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		models := 0
		name := ""
		for line := range strings.Lines(string(b)) {
			if v, ok := strings.CutPrefix(line, "model name\t: "); ok {
				models++
				name = strings.TrimSpace(v)
			}
		}
		lines = append(lines, fmt.Sprintf("%d × %s", models, name))
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		first, _, _ := strings.Cut(string(b), "\n")
		lines = append(lines, strings.Join(strings.Fields(first), " "))
	}
	for _, cmd := range [][]string{{"ceph", "--version"}, {"dpkg-query", "-W", "-f", "cinder ${Version}", "cinder-volume"}} {
		if out, err := l.Exec(ctx, cmd...); err == nil {
			lines = append(lines, out)
		}
	}

	return append(lines, "lab "+l.Generation()+": one host, three OSDs on sparse files, one replica")
}
