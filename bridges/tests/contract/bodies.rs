//! The tests themselves.

use std::time::Duration;

use hookbus_bridges::PAYLOAD_BASE64;
use hookbus_bridges::cloudevents::Format;
use hookbus_bridges::delivery::{BridgeState, Bus, Limits, Which};
use hookbus_broker::{Delivery, Message};

use super::{Arrival, Rig, TestBus, first_arrivals, until, until_state};

/// A bus that is down keeps nobody waiting: the bridge says so, and delivers when it comes.
pub(crate) async fn connects_in_the_background<T: TestBus>() {
    let mut rig = Rig::<T>::start().await;
    rig.server.kill().await;
    rig.log.publish_many(10);
    let bridge = rig.bridge();
    until_state(&bridge, "it says why it can't connect", |state| {
        matches!(state, BridgeState::Connecting { attempt: 2.., reason: Some(_), .. })
    })
    .await;
    assert_eq!(bridge.status().lag_events, 10);
    assert_eq!(rig.log.cursor(), 1);
    rig.server.restart().await;
    let arrivals = rig.delivered(&bridge).await;
    rig.check_all_in_order(&arrivals);
    until_state(&bridge, "it is ready", |state| *state == BridgeState::Ready).await;
}

/// Every event arrives once, in order, under its id; the bridge counts them, and the cursor is behind the last.
pub(crate) async fn delivers_everything_in_order<T: TestBus>() {
    let mut rig = Rig::<T>::start().await;
    let bridge = rig.bridge();
    rig.log.publish_many(1500);
    let arrivals = rig.delivered(&bridge).await;
    rig.check_all_in_order(&arrivals);
    assert_eq!(arrivals.len(), 1500, "nothing is repeated without need");
    let status = bridge.status();
    assert_eq!((status.counts.confirmed, status.counts.retried, status.counts.dead), (1500, 0, 0));
    assert_eq!((status.in_flight, status.counts.connects, status.lag_seconds), (0, 1, 0.0));
}

/// The server is killed and started again while events flow: all arrive, in order, repetitions with the same id.
pub(crate) async fn survives_a_server_that_is_killed<T: TestBus>() {
    if !acknowledges::<T>("survives_a_server_that_is_killed") {
        return;
    }
    let mut rig = Rig::<T>::start().await;
    rig.options = rig.options.clone().window(200, usize::MAX);
    let bridge = rig.bridge();
    for _ in 0..3 {
        rig.log.publish_many(1000);
        let end = rig.log.end();
        until("some are confirmed", || if rig.log.cursor() + 900 > end { Ok(()) } else { Err(bridge.status()) }).await;
        rig.server.kill().await;
        rig.log.publish_many(200);
        until_state(&bridge, "it notices", |state| matches!(state, BridgeState::Connecting { .. })).await;
        rig.server.restart().await;
        until_state(&bridge, "it is back", |state| *state == BridgeState::Ready).await;
    }
    let arrivals = rig.delivered(&bridge).await;
    rig.check_all_in_order(&arrivals);
    assert_eq!(bridge.status().counts.confirmed, 3600);
}

/// A server that is silent for longer than the time limit is given up, and everything unconfirmed is sent again once it goes on.
pub(crate) async fn survives_a_server_that_is_stopped<T: TestBus>() {
    if !acknowledges::<T>("survives_a_server_that_is_stopped") {
        return;
    }
    let mut rig = Rig::<T>::start().await;
    rig.options = rig.options.clone().ack_timeout(Duration::from_millis(700));
    let bridge = rig.bridge();
    rig.log.publish_many(100);
    rig.delivered(&bridge).await;
    rig.server.stop().await;
    rig.log.publish_many(100);
    until_state(&bridge, "it gives the connection up", |state| matches!(state, BridgeState::Connecting { .. })).await;
    assert!(bridge.status().last_error.is_some());
    assert_eq!(rig.log.cursor(), 101);
    rig.server.resume().await;
    let arrivals = rig.delivered(&bridge).await;
    rig.check_all_in_order(&arrivals);
    assert_eq!(bridge.status().counts.confirmed, 200);
}

/// The bridge ends without a word, again and again; the next one begins at the cursor, and nothing is missing.
pub(crate) async fn survives_the_end_of_its_own_process<T: TestBus>() {
    if !acknowledges::<T>("survives_the_end_of_its_own_process") {
        return;
    }
    let mut rig = Rig::<T>::start().await;
    rig.options = rig.options.clone().window(100, usize::MAX);
    rig.log.publish_many(2000);
    for part in 1..=4 {
        let bridge = rig.bridge();
        until("it has come further", || if rig.log.cursor() >= part * 300 { Ok(()) } else { Err(bridge.status()) })
            .await;
        bridge.abort().await;
    }
    let bridge = rig.bridge();
    let arrivals = rig.delivered(&bridge).await;
    rig.check_all_in_order(&arrivals);
}

/// An event that is larger than the bus takes arrives without its data, and says so.
pub(crate) async fn too_large_goes_without_data<T: TestBus>() {
    for format in [Format::CloudEvents, Format::CloudEventsBinary] {
        if format == Format::CloudEventsBinary && !T::has_headers() {
            continue;
        }
        let mut rig = Rig::<T>::start().await;
        rig.format = format;
        let bridge = rig.bridge();
        let size = T::BODY_LIMIT_BYTES + 10_000;
        rig.log.publish(Message::new("before", "x"));
        rig.log.publish(Message::new("large", "x".repeat(size)));
        rig.log.publish(Message::new("behind", "x"));
        let arrivals = rig.delivered(&bridge).await;
        let ids: Vec<&String> = first_arrivals(&arrivals).iter().map(|arrival| &arrival.id).collect();
        assert_eq!(ids, rig.log.ids().iter().collect::<Vec<_>>());
        let large = arrivals.iter().find(|arrival| arrival.id == rig.log.ids()[1]).unwrap();
        if format == Format::CloudEvents {
            let json: serde_json::Value = serde_json::from_slice(&large.body).unwrap();
            assert_eq!((&json["hookbusomitted"], json.get("data")), (&size.into(), None));
        } else {
            assert_eq!(large.body.len(), 0);
            assert!(large.attributes.contains(&("hookbusomitted".into(), size.to_string())), "{large:?}");
        }
        let counts = bridge.status().counts;
        assert_eq!((counts.omitted, counts.dead, counts.confirmed), (1, 0, 3));
    }
}

/// Where there is no place to say so, it becomes a dead letter.
pub(crate) async fn too_large_and_raw_becomes_a_dead_letter<T: TestBus>() {
    let mut rig = Rig::<T>::start().await;
    rig.format = Format::Raw;
    let bridge = rig.bridge();
    rig.log.publish(Message::new("large", vec![b'x'; T::BODY_LIMIT_BYTES + 10_000]));
    rig.log.publish(Message::new("behind", "small"));
    let arrivals = rig.delivered(&bridge).await;
    assert_eq!(first_arrivals(&arrivals).len(), 1);
    assert_eq!(arrivals[0].body, "small");
    let dead = rig.dead.list(None, 10).unwrap();
    assert_eq!((dead.len(), dead[0].attempts, dead[0].id.offset.get()), (1, 0, 1));
    assert!(dead[0].reason.contains("bytes"), "{}", dead[0].reason);
}

/// What the bus refuses for good becomes a dead letter with the reason, what is behind it arrives, and a retry goes out under another id.
pub(crate) async fn refused_becomes_a_dead_letter_and_the_line_goes_on<T: TestBus>() {
    let mut rig = Rig::<T>::start().await;
    if !rig.server.refuse("forbidden", true).await {
        eprintln!("refused_becomes_a_dead_letter_and_the_line_goes_on: this bus can't be made to refuse a name");
        return;
    }
    let bridge = rig.bridge();
    rig.log.publish(Message::new("allowed", "1"));
    let refused = rig.log.publish(Message::new("forbidden", "2"));
    rig.log.publish(Message::new("allowed", "3"));
    let arrivals = rig.delivered(&bridge).await;
    let ids: Vec<&String> = first_arrivals(&arrivals).iter().map(|arrival| &arrival.id).collect();
    assert_eq!(ids, [&rig.log.ids()[0], &rig.log.ids()[2]]);
    let dead = rig.dead.list(Some("under-test"), 10).unwrap();
    assert_eq!((dead.len(), dead[0].id, dead[0].attempts), (1, refused.id(), 1));
    assert!(!dead[0].reason.is_empty());
    assert_eq!(bridge.status().counts.dead, 1);

    assert_eq!(bridge.retry(&Which::All), 1);
    until("it is refused again", || {
        let letter = rig.dead.list(None, 1).unwrap().remove(0);
        if letter.attempts == 2 && !letter.retrying { Ok(()) } else { Err((letter, bridge.status())) }
    })
    .await;
    rig.server.refuse("forbidden", false).await;
    assert_eq!(bridge.retry(&Which::Numbers(vec![dead[0].number, 999])), 1);
    until("it is gone", || if rig.dead.count(None) == 0 { Ok(()) } else { Err(bridge.status()) }).await;
    let id = format!("{};replay=2", refused.id());
    let arrivals = until_arrived(&mut rig, |arrivals| arrivals.iter().any(|arrival| arrival.id == id)).await;
    assert!(arrivals.last().unwrap().address.contains("forbidden"));
}

/// A shutdown delivers what is there.
pub(crate) async fn drains_at_shutdown<T: TestBus>() {
    let mut rig = Rig::<T>::start().await;
    let bridge = rig.bridge();
    rig.log.publish_many(500);
    until("some are taken", || if rig.log.cursor() > 1 { Ok(()) } else { Err(bridge.status()) }).await;
    let abandoned = bridge.shutdown(super::PATIENCE).await;
    assert_eq!(abandoned.events, 0);
    let committed = usize::try_from(rig.log.cursor()).unwrap() - 1;
    let arrivals = until_arrived(&mut rig, |arrivals| first_arrivals(arrivals).len() >= committed).await;
    assert_eq!(first_arrivals(&arrivals).len(), committed, "what has arrived is what the cursor says");
}

/// A shutdown that can't deliver ends in time, says what is left, and the next bridge delivers that.
pub(crate) async fn says_what_it_abandons<T: TestBus>() {
    let mut rig = Rig::<T>::start().await;
    rig.server.kill().await;
    let bridge = rig.bridge();
    rig.log.publish_many(50);
    until("it has taken them", || if bridge.status().lag_events == 50 { Ok(()) } else { Err(bridge.status()) }).await;
    let abandoned = bridge.shutdown(Duration::from_millis(200)).await;
    assert!(abandoned.durable && abandoned.events <= 50, "{abandoned:?}");
    assert_eq!(rig.log.cursor(), 1);
    rig.server.restart().await;
    let bridge = rig.bridge();
    let arrivals = rig.delivered(&bridge).await;
    rig.check_all_in_order(&arrivals);
}

/// Never is more in flight than the window allows, whatever waits behind it.
pub(crate) async fn keeps_its_window<T: TestBus>() {
    if !acknowledges::<T>("keeps_its_window") {
        return;
    }
    let mut rig = Rig::<T>::start().await;
    rig.options = rig.options.clone().window(10, usize::MAX);
    let bridge = rig.bridge();
    rig.log.publish_many(50);
    rig.delivered(&bridge).await;
    rig.server.stop().await;
    rig.log.publish_many(500);
    until("the window is full", || {
        let status = bridge.status();
        assert!(status.in_flight <= 10, "{status:?}");
        if status.in_flight == 10 { Ok(()) } else { Err(status) }
    })
    .await;
    rig.server.resume().await;
    let arrivals = rig.delivered(&bridge).await;
    rig.check_all_in_order(&arrivals);
}

/// The tables of names, on the bus.
pub(crate) async fn names_are_the_same_on_every_bus<T: TestBus>() {
    let names = [
        ("EVENT API one.vm.allocate 1", vec!["opennebula", "api", "one.vm.allocate", "ok"]),
        ("EVENT STATE VM/ACTIVE/RUNNING/7 ", vec!["opennebula", "state", "vm", "ACTIVE", "RUNNING", "7"]),
        ("EVENT STATE HOST/MONITORED//3 ", vec!["opennebula", "state", "host", "MONITORED", "-", "3"]),
        (
            "EVENT GANETI INSTANCE/instance-add/post/web1.example.com ",
            vec!["ganeti", "instance", "instance-add", "post", "web1.example.com"],
        ),
        ("HOOKBUS HOOK my hook/failure ", vec!["hook", "my%20hook", "failure"]),
        ("EVENT ", vec!["opennebula", "other"]),
        ("backup of/db1", vec!["custom", "backup", "of", "db1"]),
        ("h\u{f6}st*il>e+#%", vec!["custom", "h%C3%B6st%2Ail%3Ee%2B%23%25"]),
        ("\0\n", vec!["custom", "%00%0A"]),
    ];
    let mut rig = Rig::<T>::start().await;
    let bridge = rig.bridge();
    for (key, _) in &names {
        rig.log.publish(Message::new(key, "x"));
    }
    let long = "x".repeat(T::Bus::ADDRESS_BYTES + 100);
    rig.log.publish(Message::new(long, "a name that no bus takes"));
    let arrivals = rig.delivered(&bridge).await;
    rig.check_all_in_order(&arrivals);
    let separator = T::Bus::SEPARATOR.to_string();
    let addresses: Vec<&str> = first_arrivals(&arrivals).iter().map(|arrival| &*arrival.address).collect();
    for ((key, parts), address) in names.iter().zip(&addresses) {
        let expected = [vec!["hookbus"], parts.clone()].concat().join(&separator);
        assert_eq!(*address, expected, "{key:?}");
    }
    let cut = addresses.last().unwrap();
    assert!(cut.len() <= T::Bus::ADDRESS_BYTES && cut.contains('~'), "{cut}");
}

/// Each format arrives as the writer wrote it.
pub(crate) async fn formats_arrive_as_they_were_written<T: TestBus>() {
    for format in [Format::CloudEvents, Format::CloudEventsBinary, Format::Raw, Format::Base64] {
        if format == Format::CloudEventsBinary && !T::has_headers() {
            continue;
        }
        let mut rig = Rig::<T>::start().await;
        rig.format = format;
        let bridge = rig.bridge();
        let xml =
            "PEhPT0tfTUVTU0FHRT48SE9PS19UWVBFPkFQSTwvSE9PS19UWVBFPjxDQUxMPm9uZS52bS54PC9DQUxMPjwvSE9PS19NRVNTQUdFPg==";
        let events = [
            rig.log.publish(Message::new("EVENT API one.vm.x 1", xml).with_tag(PAYLOAD_BASE64)),
            rig.log.publish(Message::new("text key", "gr\u{fc}n \"quoted\"\n")),
            rig.log.publish(Message::new("bytes", vec![0u8, 255, 13, 10])),
        ];
        let arrivals = rig.delivered(&bridge).await;
        rig.check_arrivals(&events.map(Delivery::Message), &arrivals);
    }
}

impl<T: TestBus> Rig<T> {
    /// Checks arrivals against what the writer makes of the same events.
    fn check_arrivals(&self, events: &[Delivery<hookbus_broker::Received>], arrivals: &[Arrival]) {
        let firsts = first_arrivals(arrivals);
        for (event, arrival) in events.iter().filter_map(|event| event.clone().message()).zip(firsts) {
            let letter = self.writer().write(event, None, None, Limits::default()).unwrap();
            assert_eq!((&*letter.address, &letter.body), (&*arrival.address, &arrival.body));
            assert_eq!(&*letter.id, arrival.id);
            if let Some(content_type) = &arrival.content_type {
                // A binding may add a parameter.
                assert!(content_type.starts_with(&*letter.content_type), "{content_type} {}", letter.content_type);
            }
            let sorted = |mut all: Vec<(String, String)>| {
                all.sort();
                all
            };
            let written = letter.attributes.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
            assert_eq!(sorted(written), sorted(arrival.attributes.clone()));
        }
    }
}

async fn until_arrived<T: TestBus>(rig: &mut Rig<T>, is: impl Fn(&[Arrival]) -> bool) -> Vec<Arrival> {
    let begun = std::time::Instant::now();
    loop {
        let arrivals = rig.server.arrived().await;
        if is(&arrivals) {
            return arrivals;
        }
        assert!(begun.elapsed() < super::PATIENCE, "{arrivals:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether the bus confirms; what it doesn't promise isn't tested.
fn acknowledges<T: TestBus>(test: &str) -> bool {
    if !T::ACKNOWLEDGES {
        eprintln!("{test}: this bus doesn't acknowledge, and promises nothing of the kind");
    }
    T::ACKNOWLEDGES
}
