//! HTTP: publish, follow, look at the daemon.
