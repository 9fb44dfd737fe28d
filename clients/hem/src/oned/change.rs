//! What oned's API tells about hooks.
//!
//! The original follows `allocate`, `update` and `delete`, and reads the number of the hook from the event; `lock`, `unlock` and `rename`
//! change what is listed. Here it is enough to know that some hook has changed: oned doesn't escape templates in events, so for a new hook
//! whose template has an `&` or a `<` in it (two of 44 in our recordings) the number can't be told for certain.

/// The keys of the messages that tell of changes.
pub const CHANGE_KEYS: [&str; 6] = [
    "EVENT API one.hook.allocate 1",
    "EVENT API one.hook.update 1",
    "EVENT API one.hook.delete 1",
    "EVENT API one.hook.lock 1",
    "EVENT API one.hook.unlock 1",
    "EVENT API one.hook.rename 1",
];
