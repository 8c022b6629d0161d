//! The background tasks of the process. None so far: they come with the next change.
