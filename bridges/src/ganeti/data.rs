//! The data of a hook's event: what Ganeti flattens into variables, as it was.
//!
//! ```json
//! {
//!   "op": "instance-modify", "phase": "post", "cluster": "c.example.com", "master": "n1", "object": "INSTANCE", "name": "web1",
//!   "node": "n1",
//!   "report": "9f...", "time": "2026-11-23T02:00:00.000Z",
//!   "env": { "GANETI_OP_CODE": "OP_INSTANCE_SET_PARAMS", "...": "..." },
//!   "before": {
//!     "instance_name": "web1", "instance_status": "up",
//!     "nics": [ { "ip": "", "mac": "aa:00:...", "mode": "bridged", "link": "br0", "network": { "name": "n", "tags": [] } } ],
//!     "disks": [ { "size": "1024", "mode": "rw" } ],
//!     "be": { "vcpus": "1" }, "hv": { "kernel_path": "/..." }, "tags": ["a", "b"]
//!   },
//!   "after": { "...": "the same of GANETI_POST_*" }
//! }
//! ```
//!
//! `report` and `time` are those of the [report](super::Report) that it was made of; `env_base64` is there where variables are no UTF-8, and
//! lists them as base64 of `NAME=value`.
//!
//! | variable | place |
//! | --- | --- |
//! | `INSTANCE_NIC<n>_<X>`, `INSTANCE_NIC<n>_NETWORK_<X>` | `nics[n].x`, `nics[n].network.x` |
//! | `INSTANCE_DISK<n>_<X>` | `disks[n].x` |
//! | `INSTANCE_BE_<x>`, `INSTANCE_HV_<x>` | `be.x`, `hv.x` |
//! | `INSTANCE_TAGS`, `CLUSTER_TAGS`, `NETWORK_TAGS`, a NIC's network's `TAGS` | a list: `tags`, `cluster_tags`, `network_tags` |
//! | `NODE_TAGS_<node>` | `node_tags`, a list for each node; names of nodes have dots |
//! | `INSTANCE_NIC_COUNT`, `INSTANCE_DISK_COUNT` | the lengths of the lists; a list is there when its count is |
//! | `INSTANCE_SECONDARIES`, `TARGET_GROUPS` | a list |
//! | what every hook has (`HOOKS_*`, `OP_CODE`, `DATA_DIR`, `OBJECT_TYPE`, `CLUSTER`, `MASTER`) | only above, and in `env` |
//! | any other | `x`, its name in lower case |

use serde_json::{Map, Value, json};

use super::run::{HookRun, Phase};

/// What is the same before and after, and said above.
const COMMON: [&str; 8] =
    ["HOOKS_VERSION", "HOOKS_PHASE", "HOOKS_PATH", "OP_CODE", "DATA_DIR", "OBJECT_TYPE", "CLUSTER", "MASTER"];

/// Lists with blanks between.
const LISTS: [(&str, &str); 5] = [
    ("INSTANCE_TAGS", "tags"),
    ("CLUSTER_TAGS", "cluster_tags"),
    ("NETWORK_TAGS", "network_tags"),
    ("INSTANCE_SECONDARIES", "instance_secondaries"),
    ("TARGET_GROUPS", "target_groups"),
];

/// More than any instance has; a number that is larger is no number of a device.
const MOST_DEVICES: usize = 256;

pub(super) fn of(run: &HookRun) -> Value {
    let variables =
        || run.environment().iter().filter_map(|(name, value)| Some((name.strip_prefix("GANETI_")?, value)));
    let before = variables().filter(|(name, _)| !name.starts_with("POST_"));
    let mut data = json!({
        "op": run.hooks_path(),
        "phase": run.phase().name(),
        "cluster": run.cluster(),
        "master": run.master(),
        "object": run.object_type(),
        "name": run.name(),
        "node": run.node(),
        "env": run.environment(),
        "before": structured(before),
    });
    if !run.bytes().is_empty() {
        data["env_base64"] = run.bytes().iter().map(|bytes| base64_simd::STANDARD.encode_to_string(bytes)).collect();
    }
    if run.phase() == Phase::Post {
        let after = variables().filter_map(|(name, value)| Some((name.strip_prefix("POST_")?, value)));
        data["after"] = structured(after);
    }
    data
}

fn structured<'v>(variables: impl Iterator<Item = (&'v str, &'v String)>) -> Value {
    let mut all = Map::new();
    for (name, value) in variables {
        if COMMON.contains(&name) {
            continue;
        }
        if let Some((_, place)) = LISTS.iter().find(|(list, _)| *list == name) {
            all.insert((*place).to_owned(), words(value));
        } else if let Some(node) = name.strip_prefix("NODE_TAGS_") {
            object(&mut all, "node_tags").insert(node.to_owned(), words(value));
        } else if let Some((device, field)) = device(name, "INSTANCE_NIC") {
            let nic = element(&mut all, "nics", device);
            match field.strip_prefix("NETWORK_") {
                Some("TAGS") => object(nic, "network").insert("tags".into(), words(value)),
                Some(field) => object(nic, "network").insert(field.to_lowercase(), value.as_str().into()),
                None => nic.insert(field.to_lowercase(), value.as_str().into()),
            };
        } else if let Some((device, field)) = device(name, "INSTANCE_DISK") {
            element(&mut all, "disks", device).insert(field.to_lowercase(), value.as_str().into());
        } else if let Some(count) = name.strip_prefix("INSTANCE_").and_then(|name| name.strip_suffix("_COUNT")) {
            let place = match count {
                "NIC" => "nics",
                "DISK" => "disks",
                _ => {
                    all.insert(name.to_lowercase(), value.as_str().into());
                    continue;
                }
            };
            // Also an instance without any has the list.
            list(&mut all, place);
        } else if let Some(parameter) = name.strip_prefix("INSTANCE_BE_") {
            object(&mut all, "be").insert(parameter.to_owned(), value.as_str().into());
        } else if let Some(parameter) = name.strip_prefix("INSTANCE_HV_") {
            object(&mut all, "hv").insert(parameter.to_owned(), value.as_str().into());
        } else {
            all.insert(name.to_lowercase(), value.as_str().into());
        }
    }
    Value::Object(all)
}

fn words(text: &str) -> Value {
    text.split_whitespace().map(Value::from).collect()
}

/// The number of a device and the rest of the name, of `INSTANCE_NIC0_MAC` say.
fn device<'n>(name: &'n str, kind: &str) -> Option<(usize, &'n str)> {
    let (number, field) = name.strip_prefix(kind)?.split_once('_')?;
    let number: usize = number.parse().ok().filter(|number| *number < MOST_DEVICES)?;
    Some((number, field))
}

/// The object of that name; one that is no object becomes one.
fn object<'m>(map: &'m mut Map<String, Value>, name: &str) -> &'m mut Map<String, Value> {
    let value = map.entry(name).or_insert_with(|| Value::Object(Map::new()));
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().expect("it was made one")
}

fn list<'m>(map: &'m mut Map<String, Value>, name: &str) -> &'m mut Vec<Value> {
    let value = map.entry(name).or_insert_with(|| Value::Array(Vec::new()));
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    value.as_array_mut().expect("it was made one")
}

/// The element of that number of a list of objects.
fn element<'m>(map: &'m mut Map<String, Value>, name: &str, number: usize) -> &'m mut Map<String, Value> {
    let list = list(map, name);
    while list.len() <= number {
        list.push(Value::Object(Map::new()));
    }
    list[number].as_object_mut().expect("they are objects")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::NoHookRun;
    use super::*;

    /// The recorded runs: directory, phase, environment.
    fn recorded() -> Vec<(String, String, BTreeMap<String, String>)> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/ganeti/hook-runs.jsonl.zst");
        let file = std::fs::File::open(path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let mut text = String::new();
        let mut decoder = ruzstd::decoding::StreamingDecoder::new(file).unwrap();
        std::io::Read::read_to_string(&mut decoder, &mut text).unwrap();
        let run = |line: &str| {
            let run: Value = serde_json::from_str(line).unwrap();
            let environment = serde_json::from_value(run["env"].clone()).unwrap();
            let text = |name: &str| run[name].as_str().unwrap().to_owned();
            (text("hooks_path"), text("phase"), environment)
        };
        text.lines().map(run).collect()
    }

    fn run_of(variables: &[(&str, &str)]) -> HookRun {
        let common = [("GANETI_HOOKS_PATH", "instance-start"), ("GANETI_HOOKS_PHASE", "post")];
        let all = common.iter().chain(variables).map(|&(name, value)| (name.to_owned(), value.to_owned()));
        HookRun::new(all, None).unwrap()
    }

    /// How many texts there are in a value.
    fn texts(value: &Value) -> usize {
        match value {
            Value::Array(all) => all.iter().map(texts).sum(),
            Value::Object(all) => all.values().map(texts).sum(),
            Value::String(_) => 1,
            _ => 0,
        }
    }

    /// Every variable of every recorded environment is somewhere, and all that there is comes from one.
    #[test]
    fn nothing_of_an_environment_is_lost() {
        let mut digests = BTreeMap::new();
        for (path, phase, environment) in recorded() {
            let run = HookRun::new(environment.clone(), Some("n1".into())).unwrap();
            assert_eq!((run.hooks_path(), run.phase().name()), (path.as_str(), phase.as_str()));
            // A verification of the cluster is the one run that names nothing.
            assert_eq!(run.name() == "-", path == "cluster-verify", "{environment:?}");
            assert!(!run.object_type().is_empty(), "{environment:?}");
            let data = run.data();
            assert_eq!(data["env"], serde_json::to_value(&environment).unwrap());
            assert_eq!((data["node"].as_str(), data.get("after").is_some()), (Some("n1"), phase == "post"));
            for (part, is_post) in [("before", false), ("after", true)] {
                let plain = environment.iter().filter_map(|(name, value)| {
                    let name = name.strip_prefix("GANETI_")?;
                    let (name, post) = name.strip_prefix("POST_").map_or((name, false), |name| (name, true));
                    (post == is_post && !COMMON.contains(&name)).then_some((name, value))
                });
                let mut expected = 0;
                for (name, value) in plain {
                    expected += match name {
                        "INSTANCE_NIC_COUNT" => {
                            assert_eq!(data[part]["nics"].as_array().unwrap().len().to_string(), *value);
                            0
                        }
                        "INSTANCE_DISK_COUNT" => {
                            assert_eq!(data[part]["disks"].as_array().unwrap().len().to_string(), *value);
                            0
                        }
                        name if name.contains("TAGS") || LISTS.iter().any(|(list, _)| *list == name) => {
                            value.split_whitespace().count()
                        }
                        _ => 1,
                    };
                }
                assert_eq!(texts(&data[part]), expected, "{part} of {environment:?}");
            }
            let seen = digests.entry(run.digest()).or_insert_with(|| environment.clone());
            assert_eq!(seen, &environment, "the same digest only for the same environment");
        }
        assert!(digests.len() > 200, "{} different environments", digests.len());
    }

    #[test]
    fn devices_and_parameters_have_their_structure_back() {
        let run = run_of(&[
            ("PATH", "/bin"),
            ("GANETI_OBJECT_TYPE", "INSTANCE"),
            ("GANETI_INSTANCE_NAME", "web1"),
            ("GANETI_INSTANCE_NIC_COUNT", "2"),
            ("GANETI_INSTANCE_NIC1_MAC", "aa"),
            ("GANETI_INSTANCE_NIC1_NETWORK_NAME", "n"),
            ("GANETI_INSTANCE_NIC1_NETWORK_TAGS", "x y"),
            ("GANETI_INSTANCE_DISK_COUNT", "0"),
            ("GANETI_INSTANCE_HV_kernel_path", ""),
            ("GANETI_INSTANCE_NIC99999999999_MAC", "odd"),
            ("GANETI_NODE_TAGS_a.example.com", "t"),
            ("GANETI_INSTANCE_SECONDARIES", ""),
            ("GANETI_POST_INSTANCE_STATUS", "up"),
        ]);
        let data = run.data();
        let expected = json!({
            "instance_name": "web1",
            "nics": [{}, { "mac": "aa", "network": { "name": "n", "tags": ["x", "y"] } }],
            "disks": [],
            "hv": { "kernel_path": "" },
            "instance_nic99999999999_mac": "odd",
            "node_tags": { "a.example.com": ["t"] },
            "instance_secondaries": [],
        });
        assert_eq!(data["before"], expected);
        assert_eq!(data["after"], json!({ "instance_status": "up" }));
        assert_eq!(
            run.keys(),
            ["EVENT INSTANCE web1/instance-start/post ", "EVENT GANETI INSTANCE/instance-start/post/web1 "]
        );
    }

    #[test]
    fn what_is_no_environment_of_a_hook_is_told() {
        let none = HookRun::new([("PATH".to_owned(), "/bin".to_owned())], None).unwrap_err();
        assert_eq!(none, NoHookRun::Missing("GANETI_HOOKS_PATH"));
        let odd = [("GANETI_HOOKS_PATH", "x"), ("GANETI_HOOKS_PHASE", "during")];
        let odd = HookRun::new(odd.map(|(name, value)| (name.to_owned(), value.to_owned())), None).unwrap_err();
        assert!(odd.to_string().contains("\"during\"; pre or post is expected"), "{odd}");
    }
}
