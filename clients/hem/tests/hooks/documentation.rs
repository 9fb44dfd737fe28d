//! The hooks in OpenNebula's documentation, on the page "Using Hooks": loaded as it prints them, and the four that have a script run over
//! recorded events, with Ruby and Nokogiri.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::support;
use crate::support::{PATIENCE, Rig, alone, recorded_events};
use hookbus_hem::template::Template;
use hookbus_hem::{Ending, Hook, Origin, Severity};
use tokio::time::Instant;

/// A listing of the page: a template as comments, then a script. What a reader does with it.
fn install(rig: &Rig, file: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/documentation").join(file);
    let listing = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (comments, script) = listing.split_at(listing.find("#!/usr/bin/ruby").unwrap());
    let template: String = comments
        .lines()
        .filter(|line| line.contains('='))
        .map(|line| format!("{}\n", line.trim_start_matches('#')))
        .collect();
    rig.template(file, &template);
    rig.script(file, script);
}

#[test]
fn its_scripts_print_what_it_says() {
    alone(|| async {
        let mut rig = Rig::new();
        for file in ["user_create.rb", "host_error.rb", "vm_prolog.rb", "image_ready.rb"] {
            install(&rig, file);
        }
        let executor = rig.start_with(|options| options.concurrency = 4);
        for event in recorded_events() {
            rig.broker.publish(event).await.unwrap();
        }
        support::wait("all hooks to have run", || match executor.status() {
            status if status.waiting == 0 && status.running == 0 => Ok(()),
            status => Err(format!("{} run, {} wait", status.running, status.waiting)),
        })
        .await;
        executor.shutdown(Instant::now() + PATIENCE).await;

        let mut printed: BTreeMap<String, BTreeSet<(i32, String)>> = BTreeMap::new();
        let mut runs = 0;
        while let Some(record) = rig.try_record() {
            assert!(matches!(record.ending, Ending::Exited(0 | 255)), "{record:?}");
            assert_eq!(record.stderr.text(), "", "{}", record.hook.name);
            let line = (record.ending.code(), record.stdout.text().trim_end().to_owned());
            printed.entry(record.hook.name.clone()).or_default().insert(line);
            runs += 1;
        }
        // Ten calls, a host, 24 machines and 27 images.
        assert_eq!(runs, 62);
        let set = |lines: &[(i32, &str)]| {
            lines.iter().map(|(code, line)| (*code, (*line).to_owned())).collect::<BTreeSet<_>>()
        };
        assert_eq!(
            printed["user-create"],
            set(&[
                (0, "User Jürgen-Müller successfully created"),
                (0, "User alice successfully created"),
                (0, "User carol successfully created"),
                (0, "User dave successfully created"),
                (0, "User grpc-user-😀-é successfully created"),
                (0, "User 用户-Ωμέγα successfully created"),
                (255, "Failing to create user"),
            ])
        );
        assert_eq!(printed["host-error"], set(&[(0, "Host 2 is in error state!!")]));
        let ready = ["0", "1", "2", "3"].map(|id| (0, format!("Image {id} ready to use!!")));
        assert_eq!(printed["image-ready"], BTreeSet::from(ready));
        let machines =
            (0..=14).chain([16, 18, 19, 20, 21, 25, 26]).map(|id| (0, format!("VM {id} is in PROLOG state")));
        assert_eq!(printed["vm-prolog"], machines.collect());
    });
}

fn load(template: &str) -> (Option<Hook>, Vec<String>) {
    let template = Template::parse(template).unwrap_or_else(|e| panic!("{e}"));
    let (hook, problems) = Hook::from_template(&template, &Origin::Program);
    let errors = problems.into_iter().map(|problem| match problem.severity {
        Severity::Error => format!("error: {}", problem.what),
        Severity::Warning => format!("warning: {}", problem.what),
    });
    (hook, errors.collect())
}

/// OpenNebula's own example hooks, which start machines again when their host is back.
const AUTOSTART_HOST: &str = "NAME = autostart-host\nTYPE = state\nCOMMAND = autostart/host\nARGUMENTS = $TEMPLATE\n\
    ARGUMENTS_STDIN = yes\nRESOURCE = HOST\nSTATE = MONITORED\n";
const AUTOSTART_VM: &str = "NAME = autostart-vm\nTYPE = state\nCOMMAND = autostart/vm\nARGUMENTS = $TEMPLATE\nARGUMENTS_STDIN = yes\n\
    RESOURCE = VM\nSTATE = POWEROFF\nLCM_STATE = LCM_INIT\nON = CUSTOM\n";

/// They run for these events, and for no others, and read the host or the machine from their standard input.
#[test]
fn autostart_hooks_run_when_they_should() {
    alone(|| async {
        let mut rig = Rig::new();
        std::fs::create_dir(rig.path("autostart")).unwrap();
        for (name, template) in [("host", AUTOSTART_HOST), ("vm", AUTOSTART_VM)] {
            rig.template(name, template);
            rig.script(&format!("autostart/{name}"), "#!/bin/sh\n[ $# = 0 ] && base64 -d\n");
        }
        let executor = rig.start();
        let (mut hosts, mut machines) = (0, 0);
        for event in recorded_events() {
            let is = |begin: &str| event.keys().any(|key| key.starts_with(begin.as_bytes()));
            hosts += usize::from(is("EVENT STATE HOST/MONITORED//"));
            machines += usize::from(is("EVENT STATE VM/POWEROFF/LCM_INIT/"));
            rig.broker.publish(event).await.unwrap();
        }
        assert!(hosts > 0 && machines > 0, "{hosts} and {machines} were recorded");
        for _ in 0..hosts + machines {
            let record = rig.record().await;
            assert_eq!(record.ending, Ending::Exited(0), "{record:?}");
            let (counted, element) = match record.hook.name.as_str() {
                "autostart-host" => (&mut hosts, "HOST"),
                _ => (&mut machines, "VM"),
            };
            *counted -= 1;
            let object = record.stdout.text();
            assert!(
                object.starts_with(&format!("<{element}>")) && object.ends_with(&format!("</{element}>")),
                "{object}"
            );
            let id = record.event.key.trim_end().rsplit('/').next().unwrap();
            assert!(object.contains(&format!("<ID>{id}</ID>")), "{id} in {object}");
            assert!(record.command.ends_with(&format!("autostart/{}", element.to_lowercase())), "{}", record.command);
        }
        assert_eq!((hosts, machines), (0, 0));
        executor.shutdown(Instant::now() + PATIENCE).await;
        assert!(rig.try_record().is_none());
    });
}

#[test]
fn its_templates_are_understood() {
    for (template, trigger, arguments, stdin) in [
        (
            "NAME      = hook-API\nTYPE      = api\nCOMMAND   = \"log_new_user.rb\"\nARGUMENTS = $API\n\
             CALL      = \"one.user.allocate\"\nARGUMENTS_STDIN = yes\n",
            "api one.user.allocate",
            "$API",
            true,
        ),
        (
            "# VM\nNAME = hook-vm\nTYPE = state\nCOMMAND = new_vm.rb\nARGUMENTS = $TEMPLATE\nON = PROLOG\nRESOURCE = VM\n",
            "state VM/ACTIVE/PROLOG",
            "$TEMPLATE",
            false,
        ),
        (
            "# IMAGE\nNAME = hook-image\nTYPE = state\nCOMMAND = image-ready.rb\nSTATE = READY\nRESOURCE = IMAGE\n",
            "state IMAGE/READY",
            "",
            false,
        ),
        // Inside a here-document, and what comes out of it.
        (
            "     NAME      = hook-vm\n     TYPE      = state\n     COMMAND   = vm-pending.rb\n     ARGUMENTS = \"\\$TEMPLATE pending\"\n     \
             ON        = CUSTOM\n     RESOURCE  = VM\n     STATE     = PENDING\n     LCM_STATE = LCM_INIT\n",
            "state VM/PENDING/LCM_INIT",
            "$TEMPLATE pending",
            false,
        ),
        (AUTOSTART_HOST, "state HOST/MONITORED", "$TEMPLATE", true),
        (AUTOSTART_VM, "state VM/POWEROFF/LCM_INIT", "$TEMPLATE", true),
    ] {
        let (hook, problems) = load(template);
        assert_eq!(problems, [""; 0], "{template}");
        let hook = hook.unwrap();
        assert_eq!(
            (hook.trigger.to_string().as_str(), hook.arguments.as_str(), hook.arguments_stdin),
            (trigger, arguments, stdin),
            "{template}"
        );
    }
    let (hook, problems) = load(
        "# HOST\nNAME = hook-host\nTYPE = state\nCOMMAND = host-disabled.rb\nSTATE = DISABLED\nRESOURCE = HOST\nREMOTE = yes\n",
    );
    assert_eq!(problems, [""; 0]);
    assert!(hook.unwrap().remote);
}
