//go:build lab

package lab_test

import "github.com/cinderlift/cinderlift/internal/lab"

func asked(change func(*lab.Asked)) func(*lab.Manifest) {
	return func(m *lab.Manifest) {
		r := lab.Asked{Image: auditedImage, Volume: "the volume"}
		change(&r)
		m.Requests = []lab.Asked{r}
	}
}

func plainly(*lab.Asked) {}

func journalDamages() []damage {
	return []damage{
		{name: "nobody took it", more: asked(plainly), codes: []string{"request-lost"}, where: auditedImage},
		{name: "open job", plant: "record(False); index()", undo: remove, codes: []string{"request-open"}, where: auditedImage},
		{name: "done without an image", plant: wholeJob, undo: remove, more: asked(plainly), codes: []string{"image-lost"}, where: auditedImage},
		{name: "cancelled by nobody", plant: "record(True, 'cancelled'); index()", undo: remove, more: asked(plainly),
			codes: []string{"image-lost"}, where: auditedImage},
		{name: "key without a record", plant: "index()", undo: "index(False)", codes: []string{"index-stray"}, where: auditedImage},
		{name: "record without a key", plant: "record(True)", undo: remove, codes: []string{"index-missing"}, where: auditedImage},
		{name: "unreadable record", plant: "record(True); index()\nwith rados.WriteOpCtx() as op:\n" +
			" journal.set_omap(op, ('record',), (b'{',)); journal.operate_write_op(op, 'job.' + IMAGE)", undo: remove,
			codes: []string{"record-broken"}, where: auditedImage},
		{name: "token in a record", plant: "record(True, more='gAAAAABl'); index()", undo: remove, codes: []string{"token-in-journal"}},
		{name: "unknown object", plant: "journal.write_full('something', b'')", undo: "journal.remove_object('something')",
			codes: []string{"journal-object"}, where: "something"},
		{name: "object of a volume's lease", plant: "journal.write_full('vol.' + VOLUME, b'')",
			undo: "journal.remove_object('vol.' + VOLUME)", codes: []string{"volume-object-left"}, where: "vol."},
		{name: "live lease", plant: "record(True); index(); journal.lock_exclusive('job.' + IMAGE, 'lease', 'me', duration=600)",
			undo: remove, codes: []string{"lock-left"}, where: "job." + auditedImage},
	}
}

func busDamages() []damage {
	return []damage{
		{name: "dead letter", plant: "send('" + topic + ".dead')", undo: "empty('" + topic + ".dead')", codes: []string{"dead-letter"}},
		{name: "waiting request", plant: "send('" + topic + "')", undo: "empty('" + topic + "')", codes: []string{"queue-entry"}},
		{name: "waiting result", more: func(m *lab.Manifest) { m.Queues = []string{"cinder-volume.lab@gone.lab"} }, plant: "send('cinder-volume.lab@gone.lab')", undo: "empty('cinder-volume.lab@gone.lab')",
			codes: []string{"queue-entry"}, where: "cinder-volume."},
	}
}

func logDamages() []damage {
	closed := `{"msg":"job closed","image":"` + auditedImage + `"}` + "\n"
	return []damage{
		{name: "closed twice", log: closed + closed, codes: []string{"ended-twice"}, where: auditedImage},
		{name: "token in a log", log: `{"msg":"a","token":"gAAAAABl"}` + "\n", codes: []string{"token-in-log"}, where: "worker.log:1"},
		{name: "password in a log", log: `{"msg":"rabbit://openstack:labpass@host"}` + "\n", codes: []string{"token-in-log"}},
		{name: "panic", log: "panic: runtime error\n", codes: []string{"worker-crashed"}, where: "worker.log:1"},
	}
}

func volumeDamages() []damage {
	const reset = `call("POST", CINDER + "/volumes/%s/action" % VOLUME, {"os-reset_status": {"status": "`
	const cinder = "CINDER = [e['url'] for s in json.loads(answer[1])['token']['catalog'] if s['type'] == 'volumev3' for e in s['endpoints']][0]\n"
	return []damage{
		{name: "uploading", plant: cinder + reset + `uploading"}})`, undo: cinder + reset + `available"}})`,
			codes: []string{"volume-uploading"}},
		{name: "in error", plant: cinder + reset + `error"}})`, undo: cinder + reset + `available"}})`, codes: []string{"volume-state"}},
		{name: "snapshot on a volume", plant: "volume_snap('cinderlift.' + IMAGE)", undo: "volume_unsnap('cinderlift.' + IMAGE)",
			codes: []string{"snapshot-left"}, where: "@cinderlift."},
		{name: "removed snapshot that a clone keeps", plant: `
with rbd.Image(volumes, 'volume-' + VOLUME) as image:
    image.create_snap('cinderlift.x')
cluster.conf_set('rbd_default_clone_format', '2')
RBD.clone(volumes, 'volume-' + VOLUME, 'cinderlift.x', images, 'stray', features=1)
with rbd.Image(volumes, 'volume-' + VOLUME) as image:
    image.remove_snap('cinderlift.x')`, undo: "RBD.remove(images, 'stray')", codes: []string{"rbd-unknown", "snapshot-trashed"}},
		{name: "RBD image in the trash", plant: "RBD.create(volumes, 'old', 1 << 22)\nRBD.trash_move(volumes, 'old')",
			undo:  "[RBD.trash_remove(volumes, e['id'], force=True) for e in RBD.trash_list(volumes)]",
			codes: []string{"rbd-trashed"}, where: "volumes/old"},
		{name: "image in the trash", plant: "RBD.create(images, 'old', 1 << 22)\nRBD.trash_move(images, 'old')",
			undo:  "[RBD.trash_remove(images, e['id'], force=True) for e in RBD.trash_list(images)]",
			codes: []string{"rbd-trashed"}, where: "images/old"},
		{name: "foreign RBD image", plant: "RBD.create(images, 'stray', 1 << 22)", undo: "RBD.remove(images, 'stray')",
			codes: []string{"rbd-unknown"}, where: "images/stray"},
		{name: "half-made RBD image", plant: "images.write_full('rbd_id.half', b'\\4\\0\\0\\0half')\nwith rados.WriteOpCtx() as op:\n" +
			" images.set_omap(op, ('name_half', 'id_half'), (b'\\4\\0\\0\\0half', b'\\4\\0\\0\\0half')); images.operate_write_op(op, 'rbd_directory')",
			undo: "images.remove_object('rbd_id.half')\nwith rados.WriteOpCtx() as op:\n" +
				" images.remove_omap_keys(op, ('name_half', 'id_half')); images.operate_write_op(op, 'rbd_directory')",
			codes: []string{"rbd-unknown"}, where: "images/half"},
		{name: "half-made volume", plant: "volumes.write_full('rbd_id.half', b'\\4\\0\\0\\0half')\nwith rados.WriteOpCtx() as op:\n" +
			" volumes.set_omap(op, ('name_half', 'id_half'), (b'\\4\\0\\0\\0half', b'\\4\\0\\0\\0half')); volumes.operate_write_op(op, 'rbd_directory')",
			undo: "volumes.remove_object('rbd_id.half')\nwith rados.WriteOpCtx() as op:\n" +
				" volumes.remove_omap_keys(op, ('name_half', 'id_half')); volumes.operate_write_op(op, 'rbd_directory')",
			codes: []string{"rbd-broken"}, where: "volumes/half"},
		{name: "data without an image", plant: "images.write_full('rbd_data.1234.0000000000000001', b'x')",
			undo: "images.remove_object('rbd_data.1234.0000000000000001')", codes: []string{"objects-orphaned"}, where: "1234"},
		{name: "volume written to", more: func(m *lab.Manifest) {
			for id := range m.Volumes {
				m.Volumes[id] = "1073741824 other"
			}
		}, codes: []string{"volume-content"}},
	}
}

// imageDamages begin with an image in Glance that has no data, and with a copy of the volume under its name in Ceph.
func imageDamages() []damage {
	first := func(change func(*lab.Asked)) func(*lab.Manifest) {
		return func(m *lab.Manifest) { change(&m.Requests[0]) }
	}
	other := first(func(a *lab.Asked) { a.Digest = "" })
	return []damage{
		{name: "none", plant: sealedAndMade, undo: ""},
		{name: "one byte", plant: "data(12345)\n" + sealedAndMade, codes: []string{"image-content"}},
		{name: "size", plant: sealedAndMade + `
unseal()
with rbd.Image(images, IMAGE) as image:
    image.resize(1 << 29)
seal(images, IMAGE)`, more: other, codes: []string{"image-size"}},
		{name: "data gone", plant: sealedAndMade + "\nunseal()\nRBD.remove(images, IMAGE)", codes: []string{"image-data-missing"}},
		{name: "without a snapshot", plant: sealedAndMade + "\nunseal()", undo: "seal(images, IMAGE)", codes: []string{"image-unsealed"}},
		{name: "unprotected", plant: sealedAndMade + "\nwith rbd.Image(images, IMAGE) as image:\n image.unprotect_snap('snap')",
			undo: "with rbd.Image(images, IMAGE) as image:\n image.protect_snap('snap')", codes: []string{"image-unsealed"}},
		{name: "second snapshot", plant: sealedAndMade + "\nwith rbd.Image(images, IMAGE) as image:\n image.create_snap('more')",
			undo: "with rbd.Image(images, IMAGE) as image:\n image.remove_snap('more')", codes: []string{"snapshot-left"}, where: "@more"},
		{name: "not flattened", plant: "RBD.remove(images, IMAGE)\nvolume_snap('cinderlift.x')\n" +
			"RBD.clone(volumes, 'volume-' + VOLUME, 'cinderlift.x', images, IMAGE, features=1)\n" + sealedAndMade,
			undo:  "unseal()\nwith rbd.Image(images, IMAGE) as image:\n image.flatten()\nseal(images, IMAGE)\nvolume_unsnap('cinderlift.x')",
			codes: []string{"image-parent", "snapshot-left"}},
		{name: "settings of the volume", plant: "with rbd.Image(images, IMAGE) as image:\n image.metadata_set('conf_rbd_cache', 'false')\n" +
			sealedAndMade, undo: "with rbd.Image(images, IMAGE) as image:\n image.metadata_remove('conf_rbd_cache')",
			codes: []string{"image-metadata"}},
		{name: "hidden", plant: sealedAndMade + "\npatch({'op': 'replace', 'path': '/os_hidden', 'value': True})",
			undo: "patch({'op': 'replace', 'path': '/os_hidden', 'value': False})", codes: []string{"image-hidden"}},
		{name: "queued", plant: wholeJob, undo: sealedAndMade, codes: []string{"image-unfinished", "image-lost"}},
		{name: "made although it failed", plant: sealedAndMade + "\nrecord(True, 'failed')", undo: "record(True)",
			codes: []string{"image-after-failure"}},
		{name: "made although it was deleted", plant: sealedAndMade, more: first(func(a *lab.Asked) { a.Cancelled = true }),
			codes: []string{"image-after-delete"}},
		{name: "twice", plant: sealedAndMade + "\ncall('POST', GLANCE + '/v2/images', {'name': 'twin', 'id': IMAGE[:-1] + ('1' if IMAGE[-1] == '0' else '0')," +
			" 'disk_format': 'raw', 'container_format': 'bare'})\npatch({'op': 'replace', 'path': '/name', 'value': 'twin'})",
			undo:  "call('DELETE', GLANCE + '/v2/images/' + IMAGE[:-1] + ('1' if IMAGE[-1] == '0' else '0'))",
			more:  first(func(a *lab.Asked) { a.Name = "twin" }),
			codes: []string{"image-duplicate", "image-unfinished"}},
	}
}
