package shaper

import "sort"

// sizeClasses are the sizes that Go's allocator has for objects of up to 32 KiB, in bytes
// (runtime/sizeclasses.go; a test compares them with the runtime's).
var sizeClasses = [...]int{8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256,
	288, 320, 352, 384, 416, 448, 480, 512, 576, 640, 704, 768, 896, 1024, 1152, 1280, 1408, 1536, 1792, 2048,
	2304, 2688, 3072, 3200, 3456, 4096, 4864, 5376, 6144, 6528, 6784, 6912, 8192, 9472, 9728, 10240, 10880,
	12288, 13568, 14336, 16384, 18432, 19072, 20480, 21760, 24576, 27264, 28672, 32768}

// runtimePage is the unit of larger objects.
const runtimePage = 8192

// allocated returns the bytes of heap that n bytes without pointers take.
func allocated(n int) int {
	if n <= 0 {
		return 0
	}
	if n <= sizeClasses[len(sizeClasses)-1] {
		return sizeClasses[sort.SearchInts(sizeClasses[:], n)]
	}
	return (n + runtimePage - 1) / runtimePage * runtimePage
}

// allocatedPointers is allocated for memory that has pointers.
func allocatedPointers(n int) int { return allocated(n + header(n)) }

// header returns the bytes that the allocator has before n bytes with pointers: 8, where
// these are more than 512, and not more than 32 KiB with it (runtime.roundupsize).
func header(n int) int {
	if n > 512 && n <= 32<<10-8 {
		return 8
	}
	return 0
}

// appended returns the bytes of heap that a slice takes which had room for exactly start
// elements, and to which elements of so many bytes were appended one by one until there
// were n: runtime.growslice, which doubles it up to 256 elements, and adds a quarter and 192
// from there on. More is not known of slices to which several are appended at once.
func appended(start, n, elementBytes int, pointers bool) int {
	head := func(int) int { return 0 }
	if pointers {
		head = header
	}
	capacity := start
	for capacity < n {
		switch {
		case capacity == 0:
			capacity = 1
		case capacity < 256:
			capacity *= 2
		default:
			capacity += (capacity + 3*256) >> 2
		}
		h := head(capacity * elementBytes)
		capacity = (allocated(capacity*elementBytes+h) - h) / elementBytes
	}
	bytes := capacity * elementBytes
	return allocated(bytes + head(bytes))
}
