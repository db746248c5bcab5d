package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

type demo struct {
	*lab.Cloud
	out    io.Writer
	start  time.Time
	report map[string]any // build/demo.json: flat

	volume    string
	data      int64  // bytes in the volume
	want      string // its size and checksum
	stockTook times
	liftTook  times
	stockID   string
	liftID    string
	worker    *lab.Worker
	image     lab.Image
	identical bool
}

// times count from the request.
type times struct{ active, released time.Duration }

// tidy removes what demos before this one have left: the lab's disks are small.
func (d *demo) tidy(ctx context.Context) error {
	volumes, err := d.Volumes(ctx)
	if err != nil {
		return err
	}
	for _, v := range volumes {
		if strings.HasPrefix(v.Name, "demo") && v.Status == "available" {
			if err := d.DeleteVolume(ctx, v.ID); err != nil {
				return err
			}
		}
	}
	images, err := d.Images(ctx)
	if err != nil {
		return err
	}
	for _, i := range images {
		if strings.HasPrefix(i.Name, "demo-") {
			if err := d.RemoveImage(ctx, i.ID); err != nil {
				return err
			}
		}
	}

	return nil
}

// prepare makes a volume with data that can be recognised.
func (d *demo) prepare(ctx context.Context) error {
	d.title("A volume")
	id, err := d.CreateVolume(ctx, lab.VolumeSpec{Name: "demo", GiB: volumeGiB})
	if err != nil {
		return err
	}
	d.volume = id
	if d.data, err = d.Fill(ctx, "volumes/volume-"+id, 40, 40); err != nil {
		return err
	}
	if d.want, err = d.Sum(ctx, "volumes/volume-"+id); err != nil {
		return err
	}
	d.say("volume %s: %d GiB, %d MiB of it written, sha256 %.16s…", id, volumeGiB, d.data>>20, strings.Fields(d.want)[1])
	d.report["volume_data_bytes"] = d.data
	d.report["volume_bytes"] = int64(volumeGiB) << 30

	return nil
}

// stock uploads it as every Cinder does.
func (d *demo) stock(ctx context.Context) (err error) {
	d.title("openstack image create --volume, stock Cinder")
	if err := d.Control(ctx, "hook", "none"); err != nil {
		return err
	}
	d.stockID, d.stockTook, err = d.upload(ctx, "stock")

	return err
}

// lift switches cinderlift on, starts a worker, and does the same again.
func (d *demo) lift(ctx context.Context) (err error) {
	d.title("The same with cinderlift")
	if err := d.Control(ctx, "caps", "early"); err != nil {
		return err
	}
	if err := d.Control(ctx, "hook", "volume_manager"); err != nil {
		return err
	}
	d.say("cinder.conf: volume_manager = cinderlift_cinder.manager.VolumeManager")
	// Another demo or worker of this host may have the usual port.
	listen := map[string]string{"CINDERLIFT_LISTEN": cmp.Or(os.Getenv("CINDERLIFT_LISTEN"), "127.0.0.1:9753")}
	log := filepath.Join("build", "demo-worker.log")
	if d.worker, err = d.StartWorker(ctx, listen, log, steps{d}); err != nil {
		return err
	}
	d.say("a worker is ready: pid %d, log in build/demo-worker.log", d.worker.Pid)
	if err := os.WriteFile(filepath.Join("build", "demo-worker.pid"), fmt.Appendln(nil, d.worker.Pid), 0o644); err != nil {
		return err
	}
	d.liftID, d.liftTook, err = d.upload(ctx, "cinderlift")

	return err
}

// upload asks for an image and watches it. Glance and Cinder are asked twenty times a second.
func (d *demo) upload(ctx context.Context, name string) (string, times, error) {
	var t times
	begin := time.Now()
	id, err := d.Upload(ctx, d.volume, lab.Raw("demo-"+name))
	if err != nil {
		return "", t, err
	}
	d.say("asked for image %s", id)
	if err := d.WaitImage(ctx, id, "active"); err != nil {
		return id, t, err
	}
	t.active = time.Since(begin)
	d.say("image is active after %.1f s", t.active.Seconds())
	if err := d.WaitVolume(ctx, d.volume, "available"); err != nil {
		return id, t, err
	}
	t.released = time.Since(begin)
	d.say("volume is available again after %.1f s", t.released.Seconds())

	return id, t, nil
}

// steps prints what the worker says about steps as they go by.
type steps struct{ d *demo }

func (s steps) Write(line []byte) (int, error) {
	var l lab.LogLine
	if json.Unmarshal(line, &l) == nil && l["msg"] == "step done" && l["strategy"] != "settle" {
		s.d.say("  worker: %-14s %-15s %6.2f s", l["strategy"], l["step"], l["seconds"])
	}

	return len(line), nil
}

// prove compares what was made, and counts what went through the worker.
func (d *demo) prove(ctx context.Context) error {
	d.title("Proof")
	var err error
	if d.image, err = d.Image(ctx, d.liftID); err != nil {
		return err
	}
	d.identical = true
	for _, i := range []struct{ name, id string }{{"stock", d.stockID}, {"cinderlift", d.liftID}} {
		sum, err := d.Sum(ctx, "images/"+i.id+"@snap")
		if err != nil {
			return err
		}
		d.identical = d.identical && sum == d.want
		d.say("%-10s image: sha256 %.16s…  identical to the volume: %v", i.name, strings.Fields(sum)[1], sum == d.want)
	}
	m, err := d.worker.Metrics(ctx)
	if err != nil {
		return err
	}
	var through float64
	for series, v := range m {
		if strings.HasPrefix(series, "cinderlift_bytes_total{") && strings.Contains(series, `via="worker"`) {
			through += v
		}
		if v > 0 && strings.HasPrefix(series, "cinderlift_jobs_total{") {
			_, s, _ := strings.Cut(series, `strategy="`)
			d.report["strategy"], _, _ = strings.Cut(s, `"`)
		}
	}
	d.report["worker_data_bytes"] = int64(through)
	d.report["identical"] = d.identical
	d.say("bytes of data that went through the worker: %d", int64(through))

	return nil
}

// boot makes a volume from the image, as Nova does before a server boots from it.
func (d *demo) boot(ctx context.Context) error {
	id, err := d.CreateVolume(ctx, lab.VolumeSpec{Name: "demo-from-image", GiB: volumeGiB, ImageRef: d.liftID})
	if err != nil {
		return err
	}
	sum, err := d.Sum(ctx, "volumes/volume-"+id)
	if err != nil {
		return err
	}
	v, err := d.Volume(ctx, id)
	if err != nil {
		return err
	}
	d.say("a new volume made from the image: bootable %s, identical: %v", v.Bootable, sum == d.want)
	d.report["volume_from_image_identical"] = sum == d.want
	d.identical = d.identical && sum == d.want

	return nil
}

func (d *demo) save(file string) error {
	d.report["stock_active_s"] = d.stockTook.active.Seconds()
	d.report["stock_released_s"] = d.stockTook.released.Seconds()
	d.report["active_s"] = d.liftTook.active.Seconds()
	d.report["released_s"] = d.liftTook.released.Seconds()
	d.report["ratio"] = d.stockTook.active.Seconds() / d.liftTook.active.Seconds()
	b, err := json.MarshalIndent(d.report, "", "  ")
	if err != nil {
		return err
	}

	return os.WriteFile(file, append(b, '\n'), 0o644)
}

func (d *demo) table() {
	d.title("Result")
	w := tabwriter.NewWriter(d.out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "\tstock Cinder\tcinderlift\t")
	fmt.Fprintf(w, "image active after\t%.1f s\t%.1f s\t%.1f times as fast\n", d.stockTook.active.Seconds(),
		d.liftTook.active.Seconds(), d.report["ratio"])
	fmt.Fprintf(w, "volume free after\t%.1f s\t%.1f s\t\n", d.stockTook.released.Seconds(), d.liftTook.released.Seconds())
	fmt.Fprintf(w, "data through a host\t%d MiB\t%v bytes\tof %d MiB written\n", volumeGiB<<10, d.report["worker_data_bytes"],
		d.data>>20)
	_ = w.Flush() // standard output
	fmt.Fprintf(d.out, "\nimage %s: status %s, %s/%s, %d bytes, store %s, checksum %s\n", d.image.ID, d.image.Status,
		d.image.DiskFormat, d.image.ContainerFormat, d.image.Size, d.image.Stores, orNone(d.image.Checksum))
	fmt.Fprintf(d.out, "strategy %s; everything in build/demo.json\n", d.report["strategy"])
}

func orNone(s string) string {
	if s == "" {
		return "none (Glance does not compute one for a location)"
	}

	return s
}

func (d *demo) goodbye() {
	g := d.Generation()
	fmt.Fprintf(d.out, `
The lab and the worker are still running. Look around:
  curl -s http://%s/metrics | grep ^cinderlift_         what operators see
  deployments/lab/lab exec %s openstack image list      what users see
  deployments/lab/lab exec %s rbd ls -l images          what Ceph sees
make demo-down removes everything.
`, d.worker.Listen, g, g)
}
