"""Every number that bounds a transfer, in one place. Read when it is used."""

__all__: list[str] = []

#: Seconds to connect, as the S3 SDKs have it.
CONNECT_SECONDS = 5.0
#: Seconds from a request to the end of the answer's header: longer drips are cut.
HEADER_SECONDS = 20.0
#: Seconds without a byte that are a stall (AWS SDK for Rust: 20, Ollama: 30).
STALL_SECONDS = 20.0
#: A connection that gave fewer than SLOW_BYTES in SLOW_SECONDS of waiting is cut: 1 KiB/s.
SLOW_SECONDS = 60.0
SLOW_BYTES = 60 * 1024
#: Seconds that a source may take to say what it holds.
ASK_SECONDS = 600.0
#: Bytes of trailers after a chunked body.
TRAILER_BYTES = 64 * 1024
#: Bytes of the names that a source may list: a manifest has room for a sixteenth of them.
LISTED_BYTES = 64 * 1024 * 1024
#: Redirects that one request may follow.
MAX_REDIRECTS = 10
#: Seconds; a longer Retry-After is taken for this.
MAX_RETRY_AFTER = 120.0

#: Failures in a row, without a byte between them, after which a chunk is given up.
TRIES = 6
#: Failures that one fetch may have in all: this many, and one for every chunk.
FETCH_TRIES = 64
#: Seconds before the first retry; doubled each time up to LONGEST_DELAY, with full jitter.
FIRST_DELAY = 0.25
LONGEST_DELAY = 8.0

#: Ranges read at once: to begin with, and at most, where nobody has named a number.
FIRST_CONNECTIONS = 8
MOST_CONNECTIONS = 64
#: Connections that somebody may ask for.
LARGEST_POOL = 256
#: Seconds over which throughput is judged.
PACE_SECONDS = 0.25

#: How long a failed or cancelled fetch waits for its threads: a read that is under way ends when its socket is shut.
STOP_SECONDS = 1.5
#: Seconds between reports of progress.
REPORT_SECONDS = 0.1

#: Seconds. A live writer writes more often: a stall of the network ends after 20, a wait it asks for after 120.
DEAD_AFTER = 15 * 60.0
#: Seconds. The same where flock proves death, for a file that nobody can resume.
DEAD_HERE_AFTER = 60.0
#: Seconds that a process may take from making a file to locking it.
LOCK_SECONDS = 1.0
#: Seconds. Older than this, a staged file belongs to nobody, on any machine that shares the directory.
STALE_AFTER = 24 * 3600.0
#: Staged files of killed processes that are kept to be resumed, newest first.
MOST_STAGED = 16
