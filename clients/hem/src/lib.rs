//! Executes hooks: commands that run when an event of a broker matches.
