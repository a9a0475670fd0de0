use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const OURS: &str = "haproxy.enable=true";
/// The last one cannot be read by its name.
const NAMES: [&str; 4] = ["api", "web", "db", "a/b"];

fn key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "default".into(), name: name.into() }
}

fn registration(name: &str, id: &str, index: u64, tag: &str) -> Registration {
    Registration {
        id: id.into(),
        service_name: name.into(),
        namespace: "default".into(),
        node_id: String::new(),
        datacenter: String::new(),
        job_id: String::new(),
        alloc_id: String::new(),
        tags: vec![tag.into()],
        address: "10.0.0.1".into(),
        port: 80,
        create_index: index,
        modify_index: index,
    }
}

fn is_ours(registrations: &[Registration]) -> bool {
    registrations.iter().any(|one| one.tags.iter().any(|tag| tag == OURS))
}

/// A Nomad, and what the watch and the passes do with it.
#[derive(Debug)]
struct World {
    index: u64,
    services: BTreeMap<ServiceKey, BTreeMap<String, Registration>>,
    snapshot: (u64, BTreeMap<ServiceKey, BTreeMap<String, Registration>>),
    /// Nomad's buffer: every line so far.
    lines: Vec<Line>,
    /// Lines on their way.
    queue: VecDeque<Line>,
    /// Whether a stream is open, and whether it still says anything.
    stream: (bool, bool),
    ledger: Ledger,
    epoch: u64,
    /// Where the blocking query waits.
    list: u64,
    /// A restore that no full read has seen.
    is_restored: bool,
}

/// A registration that comes, changes or goes.
#[derive(Debug, Clone, Copy)]
struct Edit {
    service: usize,
    instance: u8,
    /// `None`: it goes.
    tag: Option<&'static str>,
}

#[derive(Debug, Clone)]
enum Step {
    Edit(Edit),
    /// One without an event.
    Silent(Edit),
    /// The next lines arrive.
    Deliver(usize),
    /// An earlier line arrives again.
    Again(usize),
    /// The stream ends, with what was on its way.
    Close,
    /// A stream opens, and begins with earlier lines.
    Open(usize),
    /// The blocking query returns, and so many lines arrive in time.
    Wake(usize),
    /// A pass reads, some services cannot be read, and this happens meanwhile.
    Read {
        is_resync: bool,
        fails: Option<usize>,
        meanwhile: Vec<Edit>,
    },
    Snapshot,
    Restore,
}

impl World {
    fn new() -> Self {
        let mut ledger = Ledger::new(vec!["*".into()]);
        ledger.wants("*");
        Self {
            index: 1,
            services: BTreeMap::new(),
            snapshot: (1, BTreeMap::new()),
            lines: Vec::new(),
            queue: VecDeque::new(),
            stream: (false, false),
            ledger,
            epoch: 0,
            list: 0,
            is_restored: false,
        }
    }

    fn edit(&mut self, Edit { service, instance, tag }: Edit) -> Line {
        self.index += 1;
        let (name, id, index) = (NAMES[service], instance.to_string(), self.index);
        let instances = self.services.entry(key(name)).or_default();
        match tag {
            Some(tag) => drop(instances.insert(id.clone(), registration(name, &id, index, tag))),
            None => drop(instances.remove(&id)),
        }
        Line { index, services: vec![Some(key(name))] }
    }

    fn announce(&mut self, line: Line) {
        self.lines.push(line.clone());
        if self.stream == (true, true) {
            self.queue.push_back(line);
        }
    }

    fn deliver(&mut self, lines: usize) {
        for _ in 0..lines {
            let Some(line) = self.queue.pop_front() else { break };
            self.ledger.heard("*", line);
        }
    }

    fn close(&mut self) {
        self.ledger.closed("*");
        self.queue.clear();
        self.stream = (false, false);
    }

    fn open(&mut self, replayed: usize) {
        self.close();
        self.ledger.opened("*");
        self.stream = (true, true);
        let past = self.lines.iter().filter(|line| line.index <= self.index);
        self.queue = past.cloned().collect();
        self.queue.drain(..self.queue.len().saturating_sub(replayed));
    }

    fn wake(&mut self, in_time: usize) {
        // It waits for an index above the last one, whatever has happened to Nomad's state.
        if self.list > 0 && self.index <= self.list {
            return;
        }
        let index = self.index;
        if self.ledger.woke(self.list, index) == Woken::Waits {
            self.deliver(in_time);
            self.ledger.gives_up_on(index);
        }
        self.list = index;
    }

    fn registrations(&self, service: &ServiceKey) -> Vec<Registration> {
        self.services.get(service).into_iter().flat_map(|instances| instances.values().cloned()).collect()
    }

    fn read(&mut self, is_resync: bool, fails: Option<usize>, meanwhile: &[Edit]) -> Todo {
        let (ticket, todo) = self.ledger.todo(is_resync);
        let fails = fails.map(|at| key(NAMES[at]));
        let answer = |world: &Self, service: &ServiceKey| match fails.as_ref() == Some(service) {
            true => Err("rpc error".to_owned()),
            false => Ok((world.index, world.registrations(service))),
        };
        let mut edits = meanwhile.iter();
        let mut goes_on = |world: &mut Self| {
            if let Some(edit) = edits.next() {
                let line = world.edit(*edit);
                world.announce(line);
                world.deliver(1);
            }
        };
        match &todo {
            Todo::Nothing(_) => {}
            Todo::Services(services) => {
                let before = self.ledger.catalog().expect("it is known");
                let mut answers = Vec::new();
                for service in services {
                    answers.push((service.clone(), answer(self, service)));
                    goes_on(self);
                }
                if let Ok(catalog) = self.ledger.read_some(answers, is_ours) {
                    let held = fails.iter().filter(|service| services.contains(service));
                    for service in held.filter(|service| before.services.contains_key(service)) {
                        assert!(catalog.unreadable.contains_key(service), "it is held");
                    }
                }
            }
            Todo::Everything(_) => {
                let mut catalog = Catalog { index: self.index, ..Catalog::default() };
                let listed: Vec<ServiceKey> =
                    self.services.keys().filter(|service| is_ours(&self.registrations(service))).cloned().collect();
                for service in listed {
                    goes_on(self);
                    let found = match is_readable(&service) {
                        true => answer(self, &service),
                        false => Err("no such request".to_owned()),
                    };
                    match found {
                        Ok((_, found)) => drop(catalog.services.insert(service, found)),
                        Err(why) => drop(catalog.unreadable.insert(service, why)),
                    }
                }
                self.ledger.read_all(ticket, Arc::new(catalog));
                self.is_restored = false;
            }
        }
        todo
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Edit(edit) => {
                let line = self.edit(edit);
                self.announce(line);
            }
            // Both in one wake would hide the one without an event until the next resync.
            Step::Silent(edit) => {
                let waiting = self.queue.len();
                self.deliver(waiting);
                self.wake(0);
                self.edit(edit);
                self.wake(0);
            }
            Step::Deliver(lines) => self.deliver(lines),
            Step::Again(back) => {
                let at = self.lines.len().checked_sub(back + 1);
                // A stream from before a restore says nothing, not even again.
                if let (Some(line), (true, true)) = (at.map(|at| self.lines[at].clone()), self.stream) {
                    self.ledger.heard("*", line);
                }
            }
            Step::Close => self.close(),
            Step::Open(replayed) => self.open(replayed),
            Step::Wake(in_time) => self.wake(in_time),
            Step::Read { is_resync, fails, meanwhile } => drop(self.read(is_resync, fails, &meanwhile)),
            Step::Snapshot => self.snapshot = (self.index, self.services.clone()),
            Step::Restore => {
                (self.index, self.services) = self.snapshot.clone();
                // The stream stays open, and says nothing any more; a new one begins with an empty buffer.
                self.queue.clear();
                self.lines.clear();
                self.stream.1 = false;
                self.is_restored = true;
            }
        }
        self.follow_epoch();
    }

    /// What the watch does when the ledger starts over.
    fn follow_epoch(&mut self) {
        if self.epoch != self.ledger.epoch() {
            self.epoch = self.ledger.epoch();
            self.close();
            self.list = 0;
        }
    }

    /// Nothing changes any more; the watch and the passes go on until there is nothing to do. Returns how often all was
    /// read.
    fn settle(&mut self) -> usize {
        let mut full = 0;
        if self.is_restored {
            // A resync at the latest notices it.
            self.read(true, None, &[]);
            self.follow_epoch();
        }
        for _ in 0..20 {
            if !self.stream.0 {
                self.open(2);
            }
            let waiting = self.queue.len();
            self.deliver(waiting);
            self.wake(0);
            self.follow_epoch();
            match self.read(false, None, &[]) {
                Todo::Nothing(_) if self.stream.0 && self.list == self.index => return full,
                Todo::Everything(_) => full += 1,
                _ => {}
            }
            self.follow_epoch();
        }
        panic!("it never comes to rest: {self:?}");
    }

    fn known(&self) -> Catalog {
        let mut catalog = Catalog::clone(&self.ledger.catalog().expect("it was read"));
        // A service that has lost its last instance is one that there is not.
        catalog.services.retain(|_, registrations| !registrations.is_empty());
        catalog.index = 0;
        catalog
    }

    /// What a full read gives now.
    fn truth(&self) -> Catalog {
        let mut all = World { ledger: Ledger::new(vec!["*".into()]), ..World::new() };
        (all.index, all.services) = (self.index, self.services.clone());
        all.read(true, None, &[]);
        all.known()
    }
}

fn edits() -> impl Strategy<Value = Edit> {
    let tags = prop_oneof![3 => Just(Some(OURS)), 2 => Just(None), 1 => Just(Some("v=1"))];
    (0..NAMES.len(), 0..3_u8, tags).prop_map(|(service, instance, tag)| Edit { service, instance, tag })
}

fn steps() -> impl Strategy<Value = Step> {
    let read = (any::<bool>(), proptest::option::of(0..NAMES.len()), prop::collection::vec(edits(), 0..3));
    prop_oneof![
        8 => edits().prop_map(Step::Edit),
        1 => edits().prop_map(Step::Silent),
        6 => (1..4_usize).prop_map(Step::Deliver),
        2 => (0..4_usize).prop_map(Step::Again),
        1 => Just(Step::Close),
        2 => (0..4_usize).prop_map(Step::Open),
        4 => (0..4_usize).prop_map(Step::Wake),
        6 => read.prop_map(|(is_resync, fails, meanwhile)| {
            // Most reads are no resync: that one is always right.
            Step::Read { is_resync: is_resync && meanwhile.len() == 2, fails, meanwhile }
        }),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Restore),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn the_catalog_kept_by_events_is_the_one_that_a_full_read_gives(steps in prop::collection::vec(steps(), 0..60)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.settle();
        prop_assert_eq!(world.known(), world.truth());
    }

    #[test]
    fn on_a_stream_without_a_gap_all_is_read_once(edits in prop::collection::vec((edits(), 0..3_usize), 0..40)) {
        let mut world = World::new();
        world.wake(0);
        world.open(0);
        world.read(false, None, &[]);
        for (edit, arrive) in edits.into_iter().filter(|(edit, _)| edit.service < 3) {
            world.step(Step::Edit(edit));
            world.step(Step::Deliver(arrive));
            // The blocking query may be late, or first; the event comes in time.
            world.step(Step::Wake(9));
            let todo = world.read(false, None, &[]);
            prop_assert!(!matches!(todo, Todo::Everything(_)), "{:?}", todo);
        }
        prop_assert_eq!(world.settle(), 0);
        prop_assert_eq!(world.known(), world.truth());
    }
}

/// A world at rest, with a stream and three services of ours.
fn settled() -> World {
    let mut world = World::new();
    for service in 0..3 {
        world.step(Step::Edit(Edit { service, instance: 0, tag: Some(OURS) }));
    }
    world.settle();
    world
}

fn edit(service: usize, tag: Option<&'static str>) -> Step {
    Step::Edit(Edit { service, instance: 0, tag })
}

fn only(name: &str) -> Todo {
    Todo::Services([key(name)].into())
}

#[test]
fn a_change_costs_a_read_of_its_service_and_twice_heard_is_read_once() {
    let mut world = settled();
    world.step(edit(1, Some("v=2")));
    world.step(Step::Deliver(1));
    world.step(Step::Again(0));
    world.step(Step::Wake(0));
    assert_eq!(world.read(false, None, &[]), only("web"));
    assert!(matches!(world.read(false, None, &[]), Todo::Nothing(_)));
    assert!(!world.known().services.contains_key(&key("web")), "no tag of it is ours any more");
}

#[test]
fn a_service_that_lost_its_last_instance_is_known_without_any() {
    let mut world = settled();
    world.step(edit(0, None));
    world.step(Step::Deliver(1));
    world.read(false, None, &[]);
    assert_eq!(world.ledger.catalog().expect("it is known").services[&key("api")], []);
}

#[test]
fn a_wake_that_no_event_explains_costs_a_full_read_and_a_new_stream() {
    let mut world = settled();
    world.step(Step::Silent(Edit { service: 1, instance: 0, tag: None }));
    assert!(!world.stream.0, "it is closed, to be opened again");
    assert_eq!(world.read(false, None, &[]), Todo::Everything(Cause::Unexplained));
    world.step(Step::Open(0));
    assert_eq!(world.read(false, None, &[]), Todo::Everything(Cause::Stream));
}

#[test]
fn a_failed_detail_holds_its_service_and_is_read_again() {
    let mut world = settled();
    world.step(edit(2, Some("v=2")));
    world.step(edit(1, Some(OURS)));
    world.step(Step::Deliver(2));
    world.read(false, Some(2), &[]);
    assert!(world.known().unreadable.contains_key(&key("db")) && world.ledger.is_unfinished());
    assert_eq!(world.read(false, None, &[]), only("db"));
    assert!(world.known().unreadable.is_empty() && !world.ledger.is_unfinished());
    // The same after a full read.
    world.read(true, Some(1), &[]);
    assert!(world.known().unreadable.contains_key(&key("web")));
    assert_eq!(world.read(false, None, &[]), only("web"));
}

#[test]
fn an_index_that_went_back_is_noticed_by_whoever_sees_it_first() {
    let restored = || {
        let mut world = settled();
        world.step(Step::Snapshot);
        for _ in 0..5 {
            world.step(edit(1, Some(OURS)));
        }
        world.step(Step::Deliver(9));
        world.step(Step::Wake(0));
        world.read(false, None, &[]);
        world.step(Step::Restore);
        world
    };
    let starts_over = |mut world: World| {
        world.follow_epoch();
        assert_eq!((world.stream.0, world.list), (false, 0));
        world.settle();
        assert_eq!(world.known(), world.truth());
    };
    let mut world = restored();
    world.read(true, None, &[]);
    starts_over(world);

    let mut world = restored();
    world.ledger.heard("*", Line { index: world.index + 1, services: vec![Some(key("web"))] });
    assert_eq!(world.ledger.todo(false).1, Todo::Everything(Cause::IndexWentBack));
    starts_over(world);

    let mut world = restored();
    assert_eq!(world.ledger.woke(world.list, world.index), Woken::Reads);
    starts_over(world);

    // A detail of before.
    let mut world = restored();
    let answer = (key("web"), Ok((world.index, Vec::new())));
    assert_eq!(world.ledger.read_some(vec![answer], is_ours), Err(WentBack));
    starts_over(world);
}

#[test]
fn an_answer_that_is_behind_the_event_is_asked_for_again() {
    let mut world = settled();
    let known = world.ledger.catalog().expect("it is known").index;
    world.ledger.heard("*", Line { index: known + 2, services: vec![Some(key("web"))] });
    let answer = |index| vec![(key("web"), Ok((index, Vec::new())))];
    world.ledger.read_some(answer(known + 1), is_ours).expect("it is newer than what was known");
    assert!(world.ledger.is_unfinished());
    assert_eq!(world.ledger.todo(false).1, only("web"));
    world.ledger.read_some(answer(known + 2), is_ours).expect("it is new");
    assert!(matches!(world.ledger.todo(false).1, Todo::Nothing(_)));
}

#[test]
fn events_of_other_namespaces_explain_wakes_and_cost_nothing() {
    let mut ledger = Ledger::new(vec!["default".into(), "team-a".into()]);
    ledger.wants("default");
    let catalog = |index| Arc::new(Catalog { index, ..Catalog::default() });
    let (ticket, _) = ledger.todo(false);
    ledger.read_all(ticket, catalog(5));
    assert_eq!(ledger.todo(false).1, Todo::Everything(Cause::NoStream));
    ledger.opened("default");
    let (ticket, _) = ledger.todo(false);
    ledger.read_all(ticket, catalog(5));
    let elsewhere = ServiceKey { namespace: "team-b".into(), name: "api".into() };
    assert_eq!(ledger.woke(5, 7), Woken::Waits);
    assert!(!ledger.heard("default", Line { index: 7, services: vec![Some(elsewhere)] }));
    assert!(!ledger.gives_up_on(7));
    assert!(matches!(ledger.todo(false).1, Todo::Nothing(_)));
    // One that names no service, and services in large numbers.
    assert!(ledger.heard("default", Line { index: 8, services: vec![None] }));
    let (ticket, todo) = ledger.todo(false);
    assert_eq!(todo, Todo::Everything(Cause::Unnamed));
    ledger.read_all(ticket, catalog(8));
    let many = (0..=ALWAYS_SINGLE).map(|at| Some(key(&format!("s-{at}")))).collect();
    ledger.heard("default", Line { index: 9, services: many });
    assert_eq!(ledger.todo(false).1, Todo::Everything(Cause::Many));
}

#[test]
fn a_namespace_that_cannot_be_read_needs_no_stream() {
    let mut ledger = Ledger::new(vec!["default".into(), "nope".into()]);
    for stream in ["default", "nope"] {
        ledger.wants(stream);
    }
    ledger.opened("default");
    let read = |ledger: &mut Ledger, namespaces| {
        let (ticket, _) = ledger.todo(false);
        ledger.read_all(ticket, Arc::new(Catalog { index: 5, namespaces, ..Catalog::default() }));
    };
    read(&mut ledger, BTreeMap::new());
    assert_eq!(ledger.todo(false).1, Todo::Everything(Cause::NoStream));
    read(&mut ledger, [("nope".to_owned(), super::super::Unread::Missing)].into());
    assert!(matches!(ledger.todo(false).1, Todo::Nothing(_)));
    // Until an event says that it is there.
    let there = ServiceKey { namespace: "nope".into(), name: "api".into() };
    ledger.heard("nope", Line { index: 6, services: vec![Some(there)] });
    assert!(matches!(ledger.todo(false).1, Todo::Everything(_)));
}

#[test]
fn a_namespace_that_could_not_be_read_is_read_again() {
    let mut ledger = Ledger::new(vec!["default".into()]);
    ledger.wants("default");
    ledger.opened("default");
    let read = |ledger: &mut Ledger, unread: Option<fn(String) -> Unread>| {
        let (ticket, _) = ledger.todo(false);
        let namespaces = unread.map(|unread| ("default".to_owned(), unread("500".to_owned()))).into_iter().collect();
        ledger.read_all(ticket, Arc::new(Catalog { index: 5, namespaces, ..Catalog::default() }));
        ledger.retries();
        (ledger.is_unfinished(), ledger.todo(false).1 == Todo::Everything(Cause::Retry))
    };
    assert_eq!(read(&mut ledger, Some(Unread::Failed)), (true, true));
    assert_eq!(read(&mut ledger, Some(Unread::Refused)), (false, false), "nothing says that it may be read soon");
    assert_eq!(read(&mut ledger, None), (false, false));
}
