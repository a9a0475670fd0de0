//! The guard, by cases and by properties.

use proptest::prelude::*;

use super::*;
use crate::catalog::Unread;
use crate::desired::{
    Backend, BackendKind, BackendSettings, Balance, Check, Instance, Mode, NamespaceNote, ServerOptions, SlotPolicy,
    Timeouts,
};
use crate::haproxy::text::ConfigText;

const OPTIONS: Options = Options { share: Share::DEFAULT, min: 5, policy: Policy::Sync };
const NOTHING: BTreeMap<InstanceId, Fate> = BTreeMap::new();
const FIRST: Past = Past { held: &NOTHING, index_went_back: false };

fn id(number: usize) -> InstanceId {
    InstanceId::new(&format!("id-{number}"))
}

/// HAProxy with these instances, each of a service of its own.
fn observed(instances: impl IntoIterator<Item = usize>) -> Observed {
    let backend = |number: usize| {
        format!(
            "backend s{number}\n  description nomad-haproxy:nomad default/s{number}\n  \
             server s{number}_1 10.0.0.1:1 # {{\"owner\":\"nomad\",\"id\":\"id-{number}\",\"alloc\":\"a{number}\"}}\n"
        )
    };
    let text: String = instances.into_iter().map(backend).collect();
    Observed::new(1, ConfigText::new(&text), &"nomad".parse().expect("an owner"))
}

/// The desired state with these instances.
fn built(instances: impl IntoIterator<Item = usize>) -> Built {
    let mut built = Built::default();
    for number in instances {
        let service = ServiceKey { namespace: "default".into(), name: format!("s{number}") };
        let instance = Instance {
            id: id(number),
            alloc: format!("a{number}"),
            service: service.clone(),
            address: "10.0.0.1".parse().expect("an address"),
            port: 1,
            options: ServerOptions::default(),
            drain: None,
            created: 1,
        };
        let settings = BackendSettings {
            description: String::new(),
            mode: Mode::Http,
            balance: Balance::roundrobin(),
            check: Check::Disabled,
            cookie: None,
            timeouts: Timeouts::default(),
        };
        let backend = Backend {
            services: [service].into(),
            kind: BackendKind::Dynamic,
            settings,
            tags: BTreeMap::new(),
            instances: vec![instance],
            slots: SlotPolicy { min_free: 0, max: 1 },
            gated: false,
        };
        built.desired.backends.insert(format!("s{number}").parse().expect("a name"), backend);
    }
    built
}

fn reason(before: usize, after: usize, options: &Options, past: Past) -> Option<Reason> {
    Missing::new(&built(0..after), &observed(0..before), options, past).reason
}

#[test]
fn a_share_of_the_servers_trips_it() {
    assert_eq!(reason(50, 35, &OPTIONS, FIRST), None, "30 % is not more than 30 %");
    assert_eq!(reason(50, 34, &OPTIONS, FIRST), Some(Reason::Share { vanished: 16, seated: 50 }));
    assert_eq!(reason(50, 50, &OPTIONS, FIRST), None);
    assert_eq!(reason(50, 60, &OPTIONS, FIRST), None);
}

#[test]
fn a_few_do_not_trip_it_but_all_do() {
    assert_eq!(reason(5, 1, &OPTIONS, FIRST), None, "4 are fewer than the minimum");
    assert_eq!(reason(6, 1, &OPTIONS, FIRST), Some(Reason::Share { vanished: 5, seated: 6 }));
    assert_eq!(reason(1, 0, &OPTIONS, FIRST), Some(Reason::All { seated: 1 }));
    assert_eq!(reason(0, 0, &OPTIONS, FIRST), None);
}

#[test]
fn at_100_percent_it_is_off_but_for_the_policy() {
    let past = Past { index_went_back: true, ..FIRST };
    let off = Options { share: "100%".parse().expect("a share"), ..OPTIONS };
    assert_eq!((reason(50, 0, &off, past), reason(50, 0, &Options::OFF, past)), (None, None));
    assert_eq!(reason(50, 49, &Options { policy: Policy::UpsertOnly, ..off }, FIRST), Some(Reason::Policy));
}

#[test]
fn after_the_index_went_back_every_removal_needs_proof() {
    let past = Past { index_went_back: true, ..FIRST };
    assert_eq!(reason(50, 49, &OPTIONS, past), Some(Reason::IndexWentBack));
    assert_eq!(reason(50, 50, &OPTIONS, past), None);
}

#[test]
fn while_a_watched_namespace_does_not_exist_every_removal_needs_proof() {
    let mut built = built(0..49);
    built.namespaces = vec![NamespaceNote::new("a", &Unread::Failed("denied".into()))];
    assert_eq!(Missing::new(&built, &observed(0..50), &OPTIONS, FIRST).reason, None);
    built.namespaces.push(NamespaceNote::new("defualt", &Unread::Missing));
    assert_eq!(Missing::new(&built, &observed(0..50), &OPTIONS, FIRST).reason, Some(Reason::NoNamespace));
}

#[test]
fn a_held_instance_stays_held_when_the_others_are_back() {
    let held = BTreeMap::from([(id(49), Fate::Unknown)]);
    let past = Past { held: &held, index_went_back: false };
    assert_eq!(reason(50, 49, &OPTIONS, past), Some(Reason::Earlier));
    assert_eq!(reason(50, 50, &OPTIONS, past), None, "it is registered again");
    assert_eq!(reason(49, 48, &OPTIONS, past), None, "a person took it out");
}

#[test]
fn instances_held_by_service_or_turned_off_by_tags_are_not_counted() {
    let mut half = built(0..2);
    half.held.services = (2..50).map(|n| ServiceKey { namespace: "default".into(), name: format!("s{n}") }).collect();
    assert_eq!(Missing::new(&half, &observed(0..50), &OPTIONS, FIRST).needs_proof(), []);
    let mut declined = built(0..2);
    declined.declined = (2..50).map(id).collect();
    assert_eq!(Missing::new(&declined, &observed(0..50), &OPTIONS, FIRST).needs_proof(), []);
}

#[test]
fn an_instance_that_moves_to_another_backend_has_not_vanished() {
    let mut moved = built(0..3);
    let backends = std::mem::take(&mut moved.desired.backends);
    moved.desired.backends =
        backends.into_iter().map(|(name, backend)| (format!("new_{name}").parse().expect("a name"), backend)).collect();
    assert_eq!(Missing::new(&moved, &observed(0..3), &OPTIONS, FIRST).needs_proof(), []);
}

#[test]
fn it_names_what_is_held_why_and_how_to_release_it() {
    let missing = Missing::new(&built([]), &observed(0..3), &OPTIONS, FIRST);
    let fates = BTreeMap::from([(id(0), Fate::Gone), (id(1), Fate::Running), (id(2), Fate::Unknown)]);
    let holding = missing.verdict(&fates).expect("two are held");
    let notes: Vec<String> = holding.notes().iter().map(ToString::to_string).collect();
    assert_eq!(notes.len(), 2);
    assert!(
        notes[0].starts_with("error: service s1: the guard holds 1 instance") && notes[0].contains("runs"),
        "{notes:?}"
    );
    assert!(
        notes[1].contains("does not know") && notes[1].contains("`nomad-haproxy apply --allow-removals`"),
        "{notes:?}"
    );
    assert!(notes[1].contains("`POST /api/v1/guard/release`"), "{notes:?}");
    let json = serde_json::to_value(&holding).expect("JSON");
    assert_eq!((&json["instances"], &json["services"][0]["service"]["name"]), (&2.into(), &"s1".into()), "{json}");
    let line = holding.to_string();
    assert!(line.starts_with("The guard holds 2 instances of 2 services: the catalog lacks all 3"), "{line}");
}

#[test]
fn a_share_is_a_percentage() {
    assert_eq!(("30%".parse(), "1 %".parse()), (Ok(Share::DEFAULT), Ok(Share(1))));
    for bad in ["", "30", "0%", "101%", "-1%", "30.5%", "%"] {
        assert!(bad.parse::<Share>().is_err_and(|error| error.contains("1% to 100%")), "{bad}");
    }
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![Just(Fate::Gone), Just(Fate::Running), Just(Fate::Unknown), Just(Fate::Unreadable("500".into()))]
}

proptest! {
    /// Once tripped: no instance without proof is removed, none with proof stays. Otherwise none is held.
    #[test]
    fn once_tripped_exactly_the_instances_with_proof_are_removed(
        seated in prop::collection::btree_set(0_usize..60, 0..60),
        lost in prop::collection::btree_map(0_usize..60, prop::option::of(fate()), 0..60),
        earlier in prop::collection::btree_map(0_usize..60, fate(), 0..5),
        index_went_back: bool,
        strict: bool,
    ) {
        let after: BTreeSet<usize> = seated.iter().copied().filter(|number| !lost.contains_key(number)).collect();
        let held = earlier.into_iter().map(|(number, fate)| (id(number), fate)).collect();
        let options = Options { policy: if strict { Policy::UpsertOnly } else { Policy::Sync }, ..OPTIONS };
        let mut built = built(after.iter().copied());
        let observed = observed(seated.iter().copied());
        let missing = Missing::new(&built, &observed, &options, Past { held: &held, index_went_back });
        let vanished: Vec<usize> = seated.difference(&after).copied().collect();
        let tripped = missing.reason.is_some();
        let asked: BTreeSet<_> = missing.needs_proof().iter().map(|one| one.id.clone()).collect();
        prop_assert_eq!(asked, vanished.iter().filter(|_| tripped).map(|number| id(*number)).collect::<BTreeSet<_>>());
        let (share, all) = (vanished.len() >= 5 && vanished.len() * 10 > seated.len() * 3, after.is_empty());
        let was_held = vanished.iter().any(|number| held.contains_key(&id(*number)));
        prop_assert_eq!(tripped, !vanished.is_empty() && (strict || index_went_back || share || all || was_held));
        let fates = lost.iter().filter_map(|(number, fate)| Some((id(*number), fate.clone()?))).collect();
        let holding = missing.verdict(&fates);
        built.held.instances = holding.iter().flat_map(Holding::fates).map(|(id, _)| id.clone()).collect();
        for number in vanished {
            let has_proof = lost[&number] == Some(Fate::Gone);
            prop_assert_eq!(built.held.instances.contains(&id(number)), tripped && !has_proof);
        }
        prop_assert!(after.iter().all(|number| !built.held.instances.contains(&id(*number))));
    }
}
