//! The names of oned's API calls, so that a slip of the pen in CALL is noticed before the hook fails to run.
//!
//! The list is made of OpenNebula's API reference (7.0). Other versions know others, so what is not here is warned of only where it is almost
//! one of these.

use std::sync::LazyLock;

/// Objects, and what can be done to them: `one.<object>.<deed>`.
const CALLS: &[(&str, &str)] = &[
    (
        "vm",
        "allocate deploy action migrate disksaveas disksnapshotcreate disksnapshotdelete disksnapshotrevert disksnapshotrename diskresize \
         attach detach attachnic detachnic updatenic attachsg detachsg attachpci detachpci chmod chown rename snapshotcreate snapshotrevert \
         snapshotdelete resize update updateconf recover info monitoring lock unlock schedadd scheddelete schedupdate backup backupcancel \
         restore exec retryexec cancelexec",
    ),
    ("vmpool", "info infoextended infoset monitoring accounting showback calculateshowback"),
    ("template", "allocate clone delete instantiate update chmod chown rename info lock unlock"),
    ("templatepool", "info"),
    ("host", "allocate delete status update rename monitoring info"),
    ("hostpool", "info monitoring"),
    (
        "cluster",
        "allocate delete update addhost delhost adddatastore deldatastore addvnet delvnet rename info optimize planexecute plandelete",
    ),
    ("clusterpool", "info"),
    ("group", "allocate delete info update addadmin deladmin quota"),
    ("grouppool", "info"),
    ("groupquota", "info update"),
    (
        "vdc",
        "allocate delete update rename info addgroup delgroup addcluster delcluster addhost delhost adddatastore deldatastore addvnet delvnet",
    ),
    ("vdcpool", "info"),
    (
        "vn",
        "allocate delete add_ar rm_ar update_ar reserve free_ar hold release update chmod chown rename info lock unlock recover",
    ),
    ("vnpool", "info"),
    ("vntemplate", "allocate clone delete instantiate update chmod chown rename info lock unlock"),
    ("vntemplatepool", "info"),
    ("user", "allocate delete passwd login update chauth quota enable chgrp addgroup delgroup info"),
    ("userpool", "info"),
    ("userquota", "info update"),
    ("datastore", "allocate delete update chmod chown rename enable info"),
    ("datastorepool", "info"),
    (
        "image",
        "allocate clone delete enable persistent chtype update chmod chown rename snapshotdelete snapshotrevert snapshotflatten restore info \
         lock unlock resize",
    ),
    ("imagepool", "info"),
    ("market", "allocate delete update chmod chown rename enable info"),
    ("marketpool", "info"),
    ("marketapp", "allocate delete enable update chmod chown rename lock unlock info"),
    ("marketapppool", "info"),
    ("vrouter", "allocate delete attachnic detachnic instantiate update chmod chown rename info lock unlock"),
    ("vrouterpool", "info"),
    ("secgroup", "allocate clone delete commit update chmod chown rename info"),
    ("secgrouppool", "info"),
    ("vmgroup", "allocate delete update chmod chown rename roleadd roledelete roleupdate info lock unlock"),
    ("vmgrouppool", "info"),
    (
        "backupjob",
        "allocate delete update chmod chown rename info lock unlock backup cancel retry priority schedadd scheddelete schedupdate",
    ),
    ("backupjobpool", "info"),
    ("hook", "allocate delete update rename info lock unlock retry"),
    ("hookpool", "info"),
    ("hooklog", "info"),
    ("zone", "allocate delete enable update rename info raftstatus updatedb voterequest replicate fedreplicate"),
    ("zonepool", "info"),
    ("acl", "addrule delrule info"),
    ("document", "allocate clone delete update chmod chown rename info lock unlock"),
    ("documentpool", "info"),
    ("system", "version config sql sqlquery"),
];

static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let of = |(object, deeds): &(&str, &str)| {
        deeds.split_whitespace().map(|deed| format!("one.{object}.{deed}")).collect::<Vec<_>>()
    };
    CALLS.iter().flat_map(of).collect()
});

/// How many letters may be wrong in a slip of the pen.
const SLIPS: usize = 2;

/// What there is to say about the name of a call, if anything is odd about it.
pub(crate) fn doubt(call: &str) -> Option<String> {
    if !call.starts_with("one.") {
        return Some(format!("CALL = {call} can't be one of oned's calls, whose names begin with `one.`"));
    }
    if NAMES.iter().any(|name| name == call) {
        return None;
    }
    let near = |name: &&String| strsim::damerau_levenshtein(call, name) <= SLIPS;
    let nearest = NAMES.iter().filter(near).min_by_key(|name| strsim::damerau_levenshtein(call, name))?;
    Some(format!("CALL = {call} is no call that hookbus knows; did you mean {nearest}?"))
}

#[cfg(test)]
mod tests {
    use super::doubt;

    #[test]
    fn a_slip_of_the_pen_is_told_and_what_is_new_is_not() {
        for fine in ["one.vm.allocate", "one.hookpool.info", "one.vn.add_ar", "one.quantumlink.entangle"] {
            assert_eq!(doubt(fine), None);
        }
        let told = doubt("one.vm.alocate").unwrap();
        assert!(told.contains("did you mean one.vm.allocate?"), "{told}");
        assert!(doubt("vm.allocate").unwrap().contains("begin with `one.`"));
    }
}
