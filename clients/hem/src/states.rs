//! The names of OpenNebula's states, so that a misspelt one is noticed when a hook is loaded and not when it fails to run.
//!
//! The lists are those of OpenNebula 7.4 (`include/VirtualMachine.h`, `Host.h`, `Image.h`, `VirtualNetwork.h`). A later version may
//! know more, so a name that isn't here is only warned of.

use crate::hook::Object;

const VM: &[&str] = &[
    "INIT",
    "PENDING",
    "HOLD",
    "ACTIVE",
    "STOPPED",
    "SUSPENDED",
    "DONE",
    "POWEROFF",
    "UNDEPLOYED",
    "CLONING",
    "CLONING_FAILURE",
];

const VM_LCM: &[&str] = &[
    "LCM_INIT",
    "PROLOG",
    "BOOT",
    "RUNNING",
    "MIGRATE",
    "SAVE_STOP",
    "SAVE_SUSPEND",
    "SAVE_MIGRATE",
    "PROLOG_MIGRATE",
    "PROLOG_RESUME",
    "EPILOG_STOP",
    "EPILOG",
    "SHUTDOWN",
    "CLEANUP_RESUBMIT",
    "UNKNOWN",
    "HOTPLUG",
    "SHUTDOWN_POWEROFF",
    "BOOT_UNKNOWN",
    "BOOT_POWEROFF",
    "BOOT_SUSPENDED",
    "BOOT_STOPPED",
    "CLEANUP_DELETE",
    "HOTPLUG_SNAPSHOT",
    "HOTPLUG_NIC",
    "HOTPLUG_SAVEAS",
    "HOTPLUG_SAVEAS_POWEROFF",
    "HOTPLUG_SAVEAS_SUSPENDED",
    "SHUTDOWN_UNDEPLOY",
    "EPILOG_UNDEPLOY",
    "PROLOG_UNDEPLOY",
    "BOOT_UNDEPLOY",
    "HOTPLUG_PROLOG_POWEROFF",
    "HOTPLUG_EPILOG_POWEROFF",
    "BOOT_MIGRATE",
    "BOOT_FAILURE",
    "BOOT_MIGRATE_FAILURE",
    "PROLOG_MIGRATE_FAILURE",
    "PROLOG_FAILURE",
    "EPILOG_FAILURE",
    "EPILOG_STOP_FAILURE",
    "EPILOG_UNDEPLOY_FAILURE",
    "PROLOG_MIGRATE_POWEROFF",
    "PROLOG_MIGRATE_POWEROFF_FAILURE",
    "PROLOG_MIGRATE_SUSPEND",
    "PROLOG_MIGRATE_SUSPEND_FAILURE",
    "BOOT_UNDEPLOY_FAILURE",
    "BOOT_STOPPED_FAILURE",
    "PROLOG_RESUME_FAILURE",
    "PROLOG_UNDEPLOY_FAILURE",
    "DISK_SNAPSHOT_POWEROFF",
    "DISK_SNAPSHOT_REVERT_POWEROFF",
    "DISK_SNAPSHOT_DELETE_POWEROFF",
    "DISK_SNAPSHOT_SUSPENDED",
    "DISK_SNAPSHOT_REVERT_SUSPENDED",
    "DISK_SNAPSHOT_DELETE_SUSPENDED",
    "DISK_SNAPSHOT",
    "DISK_SNAPSHOT_REVERT",
    "DISK_SNAPSHOT_DELETE",
    "PROLOG_MIGRATE_UNKNOWN",
    "PROLOG_MIGRATE_UNKNOWN_FAILURE",
    "DISK_RESIZE",
    "DISK_RESIZE_POWEROFF",
    "DISK_RESIZE_UNDEPLOYED",
    "HOTPLUG_NIC_POWEROFF",
    "HOTPLUG_RESIZE",
    "HOTPLUG_SAVEAS_UNDEPLOYED",
    "HOTPLUG_SAVEAS_STOPPED",
    "BACKUP",
    "BACKUP_POWEROFF",
    "RESTORE",
];

const HOST: &[&str] = &[
    "INIT",
    "MONITORING_MONITORED",
    "MONITORED",
    "ERROR",
    "DISABLED",
    "MONITORING_ERROR",
    "MONITORING_INIT",
    "MONITORING_DISABLED",
    "OFFLINE",
];

const IMAGE: &[&str] = &[
    "INIT",
    "READY",
    "USED",
    "DISABLED",
    "LOCKED",
    "ERROR",
    "CLONE",
    "DELETE",
    "USED_PERS",
    "LOCKED_USED",
    "LOCKED_USED_PERS",
];

const NET: &[&str] = &["INIT", "READY", "LOCK_CREATE", "LOCK_DELETE", "DONE", "ERROR", "UPDATE_FAILURE"];

/// The states of an object.
pub(crate) fn of(object: Object) -> &'static [&'static str] {
    match object {
        Object::Vm => VM,
        Object::Host => HOST,
        Object::Image => IMAGE,
        Object::Net => NET,
    }
}

/// The state with that number, as documents write it.
pub(crate) fn of_number(object: Object, number: &str) -> Option<&'static str> {
    let number: usize = number.trim().parse().ok()?;
    let place = match (object, number) {
        // 7 was FAILED once, and is not given any more.
        (Object::Vm, 7) => return None,
        (Object::Vm, 8..) => number - 1,
        _ => number,
    };
    of(object).get(place).copied()
}

/// What a machine can be doing in its state.
pub(crate) fn lcm() -> &'static [&'static str] {
    VM_LCM
}

/// The one of `known` that is nearest to `word`, if it is near enough to have been meant.
pub(crate) fn nearest(word: &str, known: impl IntoIterator<Item = &'static str>) -> Option<&'static str> {
    let far = (word.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(word, name), name))
        .filter(|(d, _)| *d <= far)
        .min()
        .map(|(_, n)| n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_opennebula() {
        for (object, number, name) in [
            (Object::Vm, "3", Some("ACTIVE")),
            (Object::Vm, "6", Some("DONE")),
            (Object::Vm, "7", None),
            (Object::Vm, "8", Some("POWEROFF")),
            (Object::Vm, "11", Some("CLONING_FAILURE")),
            (Object::Vm, "12", None),
            (Object::Host, "8", Some("OFFLINE")),
            (Object::Image, "10", Some("LOCKED_USED_PERS")),
            (Object::Net, "x", None),
        ] {
            assert_eq!(of_number(object, number), name, "{object:?} {number}");
        }
    }
}
