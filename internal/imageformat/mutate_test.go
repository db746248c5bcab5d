package imageformat

import "math/rand/v2"

// mutant is a disk that is a little like one or two of the samples.
func mutant(r *rand.Rand) (sample, string) {
	all := samples()
	name := names()[r.IntN(len(all))]
	s := all[name]
	if r.IntN(4) == 0 {
		other := names()[r.IntN(len(all))]
		s.parts = append(append([]part(nil), s.parts...), all[other].parts...)
		name += "+" + other
	}
	for range r.IntN(4) {
		s = mutate(r, s)
	}

	return s, name
}

// mutate changes one thing, mostly where somebody looks.
func mutate(r *rand.Rand, s sample) sample {
	hot := []int64{0, 4, 6, 7, 8, 15, 16, 21, 28, 36, 56, 64, 72, 78, 79, 446, 447, 450, 454, 462, 478, 494, 510, 511, 512, 32 << 10, 32<<10 + 1,
		192 << 10, 192<<10 + 8, 192<<10 + 16, 2 << 20, s.size - 1536, s.size - 1024, s.size - 968, s.size - 512, s.size - 504}
	at := hot[r.IntN(len(hot))]
	if r.IntN(3) == 0 {
		at += int64(r.IntN(100))
	}
	interesting := []string{"\x00", "\x01", "\x02", "\x03", "\x04", "\x10", "\x7f", "\x80", "\xee", "\xff", " ", "\n", "/", "\"", "=", "#",
		be64(1), be64(4), be64(8), le64(vmdkAtEnd), le64(1), le64(2048), le64(2049), le64(1 << 62), le32(2), le32(4), "\x55\xaa", "CD001", "conectix",
		"KDMV", "QFI\xfb", "LUKS\xba\xbe", "vhdxfile", "\x7f\x10\xda\xbe", text(600), descriptor, descriptor + text(600), descriptor + "\xe4" + text(300),
		"createType=\"", "createType=\"streamOptimized\"\n", "createType=\"monolithicFlat\"\n", "RW 1 FLAT \"/etc/passwd\" 0\n", "parentFileNameHint=\"/x\"\n",
		"createType=\"formatnotfound\"", "RDONLY 1 FLAT \"x\"\n", "version=1\n", "METADATA"}
	switch r.IntN(8) {
	case 0:
		sizes := []int64{0, 3, 5, 63, 64, 100, 511, 512, 591, 592, 1535, 1536, 10752, 34 << 10, 34<<10 - 1, 256 << 10, 256<<10 - 1, 1 << 20, 1<<20 + 511, 1<<20 + 510}

		return s.resized(sizes[r.IntN(len(sizes))])
	case 1:
		return s.with(at, string([]byte{byte(r.Uint32())}))
	case 2, 3: // in a descriptor
		return s.with(512+int64(r.IntN(len(descriptor))), interesting[r.IntN(len(interesting))])
	default:
		return s.with(max(at, 0), interesting[r.IntN(len(interesting))])
	}
}
