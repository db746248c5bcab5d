package strategies

import "net/url"

// Names are derived from the ids of the job alone, so that any worker recognises what an earlier attempt left.

// GlanceSnapshot is the snapshot that Glance's RBD store makes and expects on every image
// (glance_store 5e56164 _drivers/rbd.py:45 DEFAULT_SNAPNAME).
const GlanceSnapshot = "snap"

// SourceSnapshot names the snapshot on the volume from which the image with this id is made. It must neither end in
// `.clone_snap` nor begin with `backup.`: Cinder's RBD driver renames or removes such snapshots when it deletes the
// volume (cinder ab09bc3 volume/drivers/rbd.py:1446-1528).
func SourceSnapshot(imageID string) string { return "cinderlift." + imageID }

// Location is the URL under which Glance finds the sealed image (glance_store 5e56164 _drivers/rbd.py:170-235: every
// part is percent-encoded).
func Location(fsid string, at Ref) string {
	return "rbd://" + url.PathEscape(fsid) + "/" + url.PathEscape(at.Pool) + "/" + url.PathEscape(at.Image) + "/" +
		url.PathEscape(GlanceSnapshot)
}
