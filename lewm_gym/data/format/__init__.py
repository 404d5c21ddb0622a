"""The format of a dataset on disk: self-describing shards, and the manifest that lists them.

A shard is one Arrow IPC file, one record batch per episode, memory-mapped and read without copying. The same format
holds a single finished episode (a part) or fifty of them. The schema's metadata make a file self-describing: the
header, and the number, length and hashes of every episode; so shards can be moved here from another folder of the
same recipe. The manifest of a folder lists its shards with their hashes, and the statistics of the
dataset.

All content is validated against the types of this package, and the records of shards and manifests contain their own
hash: a modified file causes a one-line error that names the file and the problem.
"""
