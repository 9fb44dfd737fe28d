//! [`HookRun`]: what one run of a hook found in its environment.

use std::collections::BTreeMap;
use std::fmt;

use hookbus_broker::{Message, Origin};
use serde_json::Value;
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::data;
use crate::cloudevents::ganeti_source;

/// When a hook runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Before the operation; a script that fails refuses it.
    Pre,
    /// After an operation that succeeded.
    Post,
}

impl Phase {
    /// `pre` or `post`.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Pre => "pre",
            Phase::Post => "post",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why an environment is not that of a hook.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoHookRun {
    /// A variable that every hook has isn't there.
    #[error("{0} is not in the environment; Ganeti sets it for every hook, so this was not started by Ganeti")]
    Missing(&'static str),
    /// It is neither `pre` nor `post`.
    #[error("GANETI_HOOKS_PHASE is {0:?}; pre or post is expected")]
    Phase(String),
}

/// The environment of a hook that Ganeti runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookRun {
    environment: BTreeMap<String, String>,
    /// Variables that are no UTF-8, as `NAME=value`.
    bytes: Vec<Vec<u8>>,
    phase: Phase,
    /// The node that it ran on, as far as that is known.
    node: Option<String>,
}

impl HookRun {
    /// Reads an environment. The node that it was found on is not in it.
    ///
    /// # Errors
    /// When it isn't one of a hook.
    pub fn new(
        environment: impl IntoIterator<Item = (String, String)>,
        node: Option<String>,
    ) -> Result<Self, NoHookRun> {
        let environment: BTreeMap<String, String> = environment.into_iter().collect();
        let variable = |name: &'static str| environment.get(name).ok_or(NoHookRun::Missing(name));
        variable("GANETI_HOOKS_PATH")?;
        let phase = match variable("GANETI_HOOKS_PHASE")?.as_str() {
            "pre" => Phase::Pre,
            "post" => Phase::Post,
            other => return Err(NoHookRun::Phase(other.to_owned())),
        };
        Ok(HookRun { environment, bytes: Vec::new(), phase, node })
    }

    /// Adds variables that are no UTF-8, each as `NAME=value`.
    #[must_use]
    pub fn with_bytes(mut self, mut variables: Vec<Vec<u8>>) -> Self {
        variables.sort_unstable();
        self.bytes = variables;
        self
    }

    /// The variables that are no UTF-8, each as `NAME=value`.
    pub fn bytes(&self) -> &[Vec<u8>] {
        &self.bytes
    }

    /// All variables, untouched.
    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// A variable without `GANETI_` before its name; empty where there is none.
    pub fn variable(&self, name: &str) -> &str {
        self.environment.get(&format!("GANETI_{name}")).map_or("", String::as_str)
    }

    /// When it ran.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The node that it ran on, as far as that is known.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// The operation as hooks know it, such as `instance-start`: the name of their directory.
    pub fn hooks_path(&self) -> &str {
        self.variable("HOOKS_PATH")
    }

    /// The operation as jobs know it, such as `OP_INSTANCE_STARTUP`.
    pub fn op_code(&self) -> &str {
        self.variable("OP_CODE")
    }

    /// What it is about: `CLUSTER`, `GROUP`, `INSTANCE`, `NETWORK` or `NODE`.
    pub fn object_type(&self) -> &str {
        self.variable("OBJECT_TYPE")
    }

    /// The cluster.
    pub fn cluster(&self) -> &str {
        self.variable("CLUSTER")
    }

    /// Its master.
    pub fn master(&self) -> &str {
        self.variable("MASTER")
    }

    /// What the object is called; `-` where no variable tells (network-connect has only the group).
    pub fn name(&self) -> &str {
        let names = ["OP_TARGET", "INSTANCE_NAME", "NODE_NAME", "GROUP_NAME", "NETWORK_NAME", "NEW_NAME"];
        names.iter().map(|name| self.variable(name)).find(|name| !name.is_empty()).unwrap_or("-")
    }

    /// The keys of its event: by object, then by operation.
    pub fn keys(&self) -> [String; 2] {
        let (object, name) = (self.object_type(), self.name());
        let (path, phase) = (self.hooks_path(), self.phase);
        [format!("EVENT {object} {name}/{path}/{phase} "), format!("EVENT GANETI {object}/{path}/{phase}/{name} ")]
    }

    /// What tells this environment from any other: SHA-256 of all `GANETI_*` variables in the order of their names, each name and value with
    /// its length before it. It is the same on all nodes that an operation reaches, and for the same operation done twice.
    pub fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        for (name, value) in self.environment.iter().filter(|(name, _)| name.starts_with("GANETI_")) {
            for text in [name, value] {
                digest.update((text.len() as u64).to_be_bytes());
                digest.update(text);
            }
        }
        for variable in &self.bytes {
            digest.update((variable.len() as u64).to_be_bytes());
            digest.update(variable);
        }
        digest.finalize().into()
    }

    /// Its data: `op`, `phase`, `cluster`, `master`, `object`, `name`, `node`, `env`, `before`, and of phase post `after`.
    pub fn data(&self) -> Value {
        data::of(self)
    }

    /// Its event, with this for data.
    pub fn message(&self, data: &Value) -> Message {
        let [by_object, by_operation] = self.keys();
        event(by_object, data, self.cluster()).with_key(by_operation)
    }
}

/// An event of a cluster: JSON, and the cluster is its source.
pub(super) fn event(key: String, data: &Value, cluster: &str) -> Message {
    let source = ganeti_source(cluster).into();
    let attributes = r#"{"datacontenttype":"application/json"}"#.into();
    Message::new(key, data.to_string()).with_origin(Origin { id: "".into(), source, attributes })
}
