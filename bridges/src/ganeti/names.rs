//! The operations that have hooks, as Ganeti 3.0 knows them (`lib/cmdlib`), and where their nodes stand.

use super::run::{HookRun, Phase};

/// Each operation by the name of its hook directory, and what it is about.
pub const OPERATIONS: [(&str, &str); 38] = [
    ("cluster-destroy", "CLUSTER"),
    ("cluster-init", "CLUSTER"),
    ("cluster-modify", "CLUSTER"),
    ("cluster-rename", "CLUSTER"),
    ("cluster-verify", "CLUSTER"),
    ("disk-grow", "INSTANCE"),
    ("group-add", "GROUP"),
    ("group-evacuate", "GROUP"),
    ("group-modify", "GROUP"),
    ("group-remove", "GROUP"),
    ("group-rename", "GROUP"),
    ("instance-add", "INSTANCE"),
    ("instance-change-group", "INSTANCE"),
    ("instance-export", "INSTANCE"),
    ("instance-failover", "INSTANCE"),
    ("instance-migrate", "INSTANCE"),
    ("instance-modify", "INSTANCE"),
    ("instance-move", "INSTANCE"),
    ("instance-reboot", "INSTANCE"),
    ("instance-recreate-disks", "INSTANCE"),
    ("instance-reinstall", "INSTANCE"),
    ("instance-remove", "INSTANCE"),
    ("instance-rename", "INSTANCE"),
    ("instance-start", "INSTANCE"),
    ("instance-stop", "INSTANCE"),
    ("master-ip-turndown", "CLUSTER"),
    ("master-ip-turnup", "CLUSTER"),
    ("mirrors-replace", "INSTANCE"),
    ("network-add", "NETWORK"),
    ("network-connect", "NETWORK"),
    ("network-disconnect", "NETWORK"),
    ("network-modify", "NETWORK"),
    ("network-remove", "NETWORK"),
    ("network-rename", "NETWORK"),
    ("node-add", "NODE"),
    ("node-migrate", "NODE"),
    ("node-modify", "NODE"),
    ("node-remove", "NODE"),
];

impl HookRun {
    /// A variable as it is when the hook runs: of phase post the value after the operation, where there is one.
    fn present(&self, name: &str) -> &str {
        match self.environment().get(&format!("GANETI_POST_{name}")) {
            Some(value) if self.phase() == Phase::Post => value,
            _ => self.variable(name),
        }
    }

    /// The node that an instance runs on, as the operation leaves it (before it: finds it); nothing where it is about no instance.
    pub fn primary(&self) -> Option<&str> {
        Some(self.present("INSTANCE_PRIMARY")).filter(|node| !node.is_empty())
    }

    /// The other nodes that have an instance's disks.
    pub fn secondaries(&self) -> Vec<&str> {
        self.present("INSTANCE_SECONDARIES").split_whitespace().collect()
    }

    /// All nodes that an operation names: of an instance those before and after, of a node operation that node.
    pub fn involved(&self) -> Vec<&str> {
        let names = [
            "INSTANCE_PRIMARY",
            "INSTANCE_SECONDARIES",
            "POST_INSTANCE_PRIMARY",
            "POST_INSTANCE_SECONDARIES",
            "OLD_PRIMARY",
            "OLD_SECONDARY",
            "NEW_PRIMARY",
            "NEW_SECONDARY",
            "TARGET_NODE",
            "EXPORT_NODE",
            "SRC_NODE",
            "NODE_NAME",
        ];
        let mut nodes: Vec<&str> = Vec::new();
        let own = (self.object_type() == "NODE").then(|| self.variable("OP_TARGET"));
        for value in names.iter().map(|name| self.variable(name)).chain(own) {
            for node in value.split_whitespace().filter(|node| *node != "None") {
                if !nodes.contains(&node) {
                    nodes.push(node);
                }
            }
        }
        nodes
    }
}
