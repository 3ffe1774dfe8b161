"""Pools that hold real slices and come from no generator, by the names that a protocol gives them."""

COPY_PASTE = "copy_paste"  # tumours pasted into other patients
DUPLICATES = "duplicates"  # the slices again
CLASSICAL = "classical"  # classical copies of them: rotation, flip, crop
FROM_REAL = (COPY_PASTE, DUPLICATES, CLASSICAL)
