//! What must hold of every case.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nomad_haproxy::desired::build::{Built, build};
use nomad_haproxy::desired::{
    Address, Backend, BackendKind, BackendName, Instance, InstanceId, MapKind, Occupant, ServerName, ServerOptions,
    Severity,
};
use nomad_haproxy::haproxy::maps::{self, MapFile};
use nomad_haproxy::haproxy::text::{ConfigText, Section};
use nomad_haproxy::observed::{Maps, Observed, ObservedBackend, harm, lost_comments};
use nomad_haproxy::plan::display::Summary;
use nomad_haproxy::plan::guard::{self, Fate, Holding, Missing, Past};
use nomad_haproxy::plan::{self, Action, Changes, Conflict, Growth, LeftOut, Plan, Planned, text};
use nomad_haproxy::plane::Runtime;

use super::case::{Case, Settings, Step, moved, shown};
use super::tally::Tally;
use super::validate::Haproxy;
use super::{foreign, hand};

/// How a property is violated.
pub type Broken = String;

/// Checks a condition; the error is what is violated.
macro_rules! hold {
    ($condition:expr, $($words:tt)*) => {
        if !$condition {
            return Err(format!($($words)*));
        }
    };
}

/// Runs a case.
pub fn case(case: &Case, tally: &Tally) -> Result<(), Broken> {
    let mut run = Run::new(case, tally);
    let mut now = None;
    for step in &case.steps {
        now = Some(moved(now, step.milliseconds));
        run.step(step, &case.settings, now.unwrap_or_default())?;
    }
    // Nothing is left when no service is registered. Drains end first, the longest after a day.
    let settings = Settings { linger: Duration::ZERO, guard: guard::Options::OFF, ..case.settings.clone() };
    for _ in 0..2 {
        now = Some(moved(now, 100_000_000));
        let nothing = Step {
            hand: Vec::new(),
            milliseconds: 0,
            registrations: Vec::new(),
            unreadable: Vec::new(),
            unread: Vec::new(),
            refused: Vec::new(),
        };
        run.step(&nothing, &settings, now.unwrap_or_default())?;
    }
    if run.untouched {
        // What backends are made from goes with the next reload.
        // So do rules that nothing needs.
        let left = run.observed();
        let rules = left.frontends.iter().filter(|(_, frontend)| !frontend.rules.is_empty());
        let rules = rules.map(|(name, _)| (name.parse().expect("a name"), plan::RuleEdit::default()));
        let routes = plan::RouteEdits { rules: rules.collect(), ..plan::RouteEdits::default() };
        let plan = Plan { profiles: left.profiles.edits([], &left.owner), routes, ..Plan::default() };
        let entries = left.maps.files.values().flatten().count();
        hold!(entries == 0, "routes are left: {:?}", left.maps.files);
        let cleared = text::apply(&plan, &left, &left.owner).to_bytes();
        let (was, is) = (foreign::body(&case.file), foreign::body(&cleared));
        hold!(was == is, "the file is not what it was:\n{}instead of\n{}", shown(&is), shown(&was));
    }
    Ok(())
}

struct Run<'a> {
    tally: &'a Tally,
    file: Vec<u8>,
    maps: Maps,
    /// Whether only we have written to it, and nothing in it was ours before.
    untouched: bool,
    is_edited: bool,
    original: &'a [u8],
    haproxy: Option<Haproxy>,
    /// Whether HAProxy accepts the file as it is.
    taken: bool,
}

impl<'a> Run<'a> {
    fn new(case: &'a Case, tally: &'a Tally) -> Self {
        let haproxy = case.haproxy.map(Haproxy::new);
        let folder = haproxy.as_ref().map_or_else(|| "/maps".to_owned(), Haproxy::folder);
        let maps = Maps { folder, ..Maps::default() };
        let is_taken = |haproxy: &Haproxy| haproxy.refusal(&case.file, &maps, &Settings::owner()).is_none();
        let taken = haproxy.as_ref().is_some_and(is_taken);
        tally.asked(haproxy.is_some(), taken);
        let untouched = !foreign::has_marks(&case.file);
        let (file, original) = (case.file.clone(), &case.file);
        Self { tally, file, maps, untouched, is_edited: false, original, haproxy, taken }
    }

    fn observed(&self) -> Observed {
        Observed::new(1, ConfigText::from_bytes(&self.file), &Settings::owner()).with_maps(self.maps.clone())
    }

    /// HAProxy's message, if it refuses the file; `None` also if it is not asked.
    fn refusal(&self) -> Option<String> {
        self.haproxy.as_ref()?.refusal(&self.file, &self.maps, &Settings::owner())
    }

    fn step(&mut self, step: &Step, settings: &Settings, now: Duration) -> Result<(), Broken> {
        if !step.hand.is_empty() {
            self.file = hand::edited(&self.file, &step.hand);
            (self.untouched, self.is_edited) = (false, true);
            self.taken = self.haproxy.is_some() && self.refusal().is_none();
        }
        let before = self.observed();
        hold!(before.text.to_bytes() == self.file, "reading the file changes it");
        let mut built = build(&step.catalog(), &before.present(), &settings.build());
        let reversed = build(&step.reversed(), &before.present(), &settings.build());
        hold!(same(&built, &reversed), "the order of the list matters: {built:?}");
        if self.haproxy.is_some() {
            resolvable(&mut built);
        }
        let held = guarded(&mut built, &before, settings, &BTreeMap::new());
        let pass = Pass { is_edited: self.is_edited, ..Pass::new(&built, step, settings, now) };
        let planned = match pass.plan(&before) {
            Ok(planned) => planned,
            Err(conflict) => {
                self.tally.conflict(&conflict);
                return Ok(());
            }
        };
        self.tally.plan(&planned.plan);
        let after = pass.applied(&planned.plan, &before);
        pass.holds(&planned, &before, &after)
            .map_err(|broken| format!("{broken}\nfrom\n{}to\n{}", shown(&self.file), shown(&after.text.to_bytes())))?;
        if is_certain(&before) && !frees(&built, &planned.plan) {
            self.goes_on(step, settings, now, (&planned.plan, &built, &held), (&before, &after))?;
        }
        if !planned.plan.is_empty() {
            self.file = after.text.clone().with_version(before.text.version().unwrap_or(0) + 1).to_bytes();
            self.maps = after.maps.clone();
            self.is_taken(&planned.plan)?;
        }
        if self.untouched {
            let (was, is) = (foreign::body(self.original), foreign::body(&self.file));
            hold!(foreign::is_within(&was, &is), "a line is lost:\n{}instead of\n{}", shown(&is), shown(&was));
        }
        Ok(())
    }

    /// The passes after this one, each with a desired state of its own: there is nothing more to do, and where the
    /// reload had to wait, it comes to the end that it would have come to.
    fn goes_on(
        &self,
        step: &Step,
        settings: &Settings,
        now: Duration,
        (plan, built, held): (&Plan, &Built, &BTreeMap<InstanceId, Fate>),
        (before, after): (&Observed, &Observed),
    ) -> Result<(), Broken> {
        let next = |observed: &Observed| {
            let mut next = build(&step.catalog(), &observed.present(), &settings.build());
            if self.haproxy.is_some() {
                resolvable(&mut next);
            }
            guarded(&mut next, observed, settings, held);
            next
        };
        let planned = |built: &Built, observed: &Observed| {
            let planned = Pass::new(built, step, settings, now).plan(observed);
            planned.map_err(|conflict| format!("the next pass has a conflict: {conflict}"))
        };
        let (was, is) = (shown(&before.text.to_bytes()), shown(&after.text.to_bytes()));
        let again = planned(&next(after), after)?.plan;
        hold!(again.is_empty(), "the next pass has more to do: {again:?}\nafter\n{plan:?}\nfrom\n{was}to\n{is}");
        if plan.is_live() {
            return Ok(());
        }
        let (live, _) = plan.clone().split(Plan::gone(built, before, now));
        let between = Pass::new(built, step, settings, now).applied(&live, before);
        let then = next(&between);
        let second = planned(&then, &between)?;
        let pass = Pass::new(&then, step, settings, now);
        let end = pass.applied(&second.plan, &between);
        let text = |observed: &Observed| shown(&observed.text.to_bytes());
        pass.reads_back(&second, &between, &end)
            .map_err(|broken| format!("after a reload that waited, {broken}\nfrom\n{was}by\n{}", text(&between)))?;
        if frees(&then, &second.plan) {
            return Ok(());
        }
        let third = planned(&next(&end), &end)?.plan;
        hold!(
            third.is_empty(),
            "after a reload that waited, there is more to do: {third:?}\nafter\n{:?}\nfrom\n{was}by\n{}to\n{}",
            second.plan,
            text(&between),
            text(&end)
        );
        Ok(())
    }

    fn is_taken(&mut self, plan: &Plan) -> Result<(), Broken> {
        let Some(refusal) = self.refusal().filter(|_| self.taken) else { return Ok(()) };
        // HAProxy 3.3 and newer refuse a backend that has the name of a frontend or a `defaults` section, and all refuse
        // one below a `defaults` section with rules that a frontend has, too. The plan does not know of versions nor
        // of rules; the pass finds the backend, and leaves it out.
        let is_known = |words: &&str| refusal.contains(words);
        if ["has the same name as", "cannot inherit from the same defaults section"].iter().any(is_known) {
            self.taken = false;
            return Ok(());
        }
        Err(format!("HAProxy refuses it:\n{refusal}\n{}{plan:?}", shown(&self.file)))
    }
}

/// Whether it is certain for every line whether it begins a section. For an unknown kind that is a guess by the
/// indentation of the section above, which a line of ours may change.
fn is_certain(observed: &Observed) -> bool {
    observed.text.sections().iter().all(Section::is_known)
}

/// The same except for the order of instances, which has no meaning.
fn same(one: &Built, other: &Built) -> bool {
    let sorted = |built: &Built| {
        let mut built = built.clone();
        for backend in built.desired.backends.values_mut() {
            backend.instances.sort_by(|a, b| a.id.cmp(&b.id));
        }
        built
    };
    sorted(one) == sorted(other)
}

/// HAProxy resolves host names when it reads a file, and here only this one resolves.
fn resolvable(built: &mut Built) {
    let instances = built.desired.backends.values_mut().flat_map(|backend| &mut backend.instances);
    for instance in instances.filter(|instance| matches!(instance.address, Address::Host(_))) {
        instance.address = Address::Host("localhost".to_owned());
    }
}

/// Has the desired state hold what the guard holds, where nobody can be asked.
fn guarded(
    built: &mut Built,
    observed: &Observed,
    settings: &Settings,
    held: &BTreeMap<InstanceId, Fate>,
) -> BTreeMap<InstanceId, Fate> {
    let past = Past { held, index_went_back: false };
    let holding = Missing::new(built, observed, &settings.guard, past).verdict(&BTreeMap::new());
    if let Some(holding) = &holding {
        holding.hold(built);
    }
    let fates = holding.iter().flat_map(Holding::fates);
    fates.map(|(id, fate)| (id.clone(), fate.clone())).collect()
}

/// Whether a backend whose time is over goes, whose name somebody else has by the next pass.
fn frees(built: &Built, plan: &Plan) -> bool {
    built.awaited.iter().any(|name| matches!(plan.edits.get(name), Some(plan::Edit::Delete { .. })))
}

/// One pass over one state.
struct Pass<'a> {
    built: &'a Built,
    /// Whether an edit may have broken a word that marks a secret.
    is_edited: bool,
    options: plan::Options,
    refused: LeftOut,
}

impl<'a> Pass<'a> {
    fn new(built: &'a Built, step: &Step, settings: &Settings, now: Duration) -> Self {
        Self { built, is_edited: true, options: settings.plan(now), refused: step.refused() }
    }

    fn plan(&self, observed: &Observed) -> Result<Planned, Conflict> {
        Plan::new(self.built, observed, &self.options, &self.refused)
    }

    fn applied(&self, plan: &Plan, before: &Observed) -> Observed {
        let text = text::apply(plan, before, &self.options.owner);
        Observed::new(before.version, text, &self.options.owner).with_maps(plan.routes.after(&before.maps))
    }

    fn holds(&self, planned: &Planned, before: &Observed, after: &Observed) -> Result<(), Broken> {
        self.converges(planned, before, after)?;
        self.keeps_what_is_not_ours(planned, before, after)?;
        self.routes(&planned.plan, before, after)?;
        self.splits(&planned.plan, before, after)?;
        self.changes_process(&planned.plan, before, after)?;
        self.reads_back(planned, before, after)
    }

    fn converges(&self, first: &Planned, before: &Observed, after: &Observed) -> Result<(), Broken> {
        if first.plan.is_empty() {
            hold!(before == after, "a plan of nothing changes something");
        }
        let again = self.plan(after).map_err(|conflict| format!("now there is a conflict: {conflict}"))?;
        if !again.plan.is_empty() && !is_certain(before) {
            let third = self.plan(&self.applied(&again.plan, after)).map_err(|conflict| conflict.to_string())?;
            hold!(third.plan.is_empty(), "there is still more to do: {:?}\nafter\n{:?}", third.plan, again.plan);
            return Ok(());
        }
        hold!(again.plan.is_empty(), "there is more to do: {:?}\nafter\n{:?}", again.plan, first.plan);
        Ok(())
    }

    fn keeps_what_is_not_ours(&self, planned: &Planned, before: &Observed, after: &Observed) -> Result<(), Broken> {
        let owner = &self.options.owner;
        if is_certain(before) {
            let (was, is) = (foreign::lines(before, owner), foreign::lines(after, owner));
            hold!(foreign::is_kept(&was, &is), "foreign lines changed: {was:#?}\nbecame\n{is:#?}");
        } else {
            // What is ours may turn out not to be, or the other way round, when one of our lines is removed.
            let unknown = foreign::unknown(before, owner);
            let kept =
                foreign::is_within(&unknown.concat().into_bytes(), &(after.text.lines().concat() + "\n").into_bytes());
            hold!(kept, "a section of an unknown kind is changed: {unknown:#?}");
        }
        // Conditional lines at the end of a section belong to no section, and that end moves with our own lines. Where
        // a section of an unknown kind begins depends on the section above it, which may be ours.
        let dotted = before.text.lines().iter().any(|line| line.trim_start().starts_with('.'));
        let is_plain = !dotted && is_certain(before);
        let harm = if is_plain { harm(before, after) } else { Vec::new() };
        hold!(harm.is_empty(), "harm is seen: {harm:?}");
        // The owner of a comment also matters: it is not ours, and so lost, if its section becomes ours.
        let lost = if is_certain(before) { lost_comments(before, after) } else { Vec::new() };
        hold!(lost.is_empty(), "comments are lost: {lost:?}");
        let summary = Summary::new(&planned.plan, before, &after.text, planned.notes.clone());
        hold!(summary.changes != planned.plan.is_empty(), "the summary is wrong: {summary}");
        let ended = before.text.lines().last().is_none_or(|last| last.ends_with('\n'));
        hold!(!ended || summary.rerendered_lines == 0, "lines are counted as rendered: {summary}");
        hold!(self.is_edited || !summary.to_string().contains("s3cr3t"), "a secret is printed: {summary}");
        let _ = serde_json::to_string(&summary).map_err(|error| error.to_string())?;
        Ok(())
    }

    /// No entry names a backend that is not there, and no rule a map that is not there, before the write and after it.
    fn routes(&self, plan: &Plan, before: &Observed, after: &Observed) -> Result<(), Broken> {
        for (file, edit) in plan.routes.maps.iter().filter(|(file, _)| file.kind == MapKind::Routes) {
            for (lines, observed) in [(&edit.first, before), (&edit.last, after)] {
                let names = lines.iter().flatten().map(|(_, backend)| backend);
                let missing: Vec<_> = names.filter(|name| !observed.backends.contains_key(*name)).collect();
                hold!(missing.is_empty(), "entries of {file:?} name {missing:?}, which are not there: {plan:?}");
            }
        }
        for (name, frontend) in &after.frontends {
            for words in frontend.rules.values() {
                let kind = maps::kind_of(words, &self.options.owner);
                let Some((kind, frontend)) = kind.zip(name.parse().ok()) else { continue };
                let is_there = after.maps.files.contains_key(&MapFile { frontend, kind });
                // A person may have written, or moved, a rule that looks like ours.
                hold!(is_there || self.is_edited, "a rule of {name} reads a map that is not there: {words:?}");
            }
        }
        Ok(())
    }

    fn splits(&self, plan: &Plan, before: &Observed, after: &Observed) -> Result<(), Broken> {
        let (live, waiting) = plan.clone().split(Plan::default());
        hold!(live.is_live(), "the live part takes a reload: {live:?}");
        hold!(plan.is_live() == waiting.is_empty(), "what waits is not what takes a reload: {waiting:?} of {plan:?}");
        self.takes_out_gone_instances(plan, before)?;
        if self.keeps_gone_instances(&live, before) || !is_certain(before) {
            return Ok(());
        }
        let between = self.applied(&live, before);
        let then = self.plan(&between).map_err(|conflict| conflict.to_string())?.plan;
        let (again, left) = then.clone().split(Plan::default());
        hold!(again.is_empty(), "more is live: {again:?}\nafter\n{live:?}\nof\n{plan:?}");
        hold!(left == waiting, "what is left is {left:?}\ninstead of\n{waiting:?}\nof\n{plan:?}");
        // Servers that are added at run time come before those that take a reload.
        let sorted = |observed: &Observed| {
            let mut lines = observed.text.lines().to_vec();
            if self.options.capabilities.servers {
                lines.sort();
            }
            lines.concat().into_bytes()
        };
        let (one, two) = (sorted(after), sorted(&self.applied(&then, &between)));
        hold!(one == two, "in two steps it comes to\n{}instead of\n{}", shown(&two), shown(&one));
        Ok(())
    }

    /// Without a reload, instances that are gone are taken out, and the passes after that converge.
    fn takes_out_gone_instances(&self, plan: &Plan, before: &Observed) -> Result<(), Broken> {
        let gone = Plan::gone(self.built, before, self.options.now);
        hold!(gone.is_live(), "to free slots takes a reload: {gone:?}");
        let (live, _) = plan.clone().split(gone);
        hold!(live.is_live(), "with who is gone the live part takes a reload: {live:?}");
        if !is_certain(before) {
            return Ok(());
        }
        hold!(!self.keeps_gone_instances(&live, before), "who is gone waits for a reload: {live:?}\nof\n{plan:?}");
        let between = self.applied(&live, before);
        let then = self.plan(&between).map_err(|conflict| conflict.to_string())?.plan;
        let again = self.plan(&self.applied(&then, &between)).map_err(|conflict| conflict.to_string())?.plan;
        hold!(again.is_empty(), "there is more to do: {again:?}\nafter\n{then:?}\nafter\n{live:?}");
        Ok(())
    }

    /// Checks that the live part keeps no instance in service that is gone; except in a slot that is removed, or taken
    /// by a reload, which is not freed before that.
    fn keeps_gone_instances(&self, live: &Plan, before: &Observed) -> bool {
        let between = self.applied(live, before);
        let mut managed = between.managed();
        managed.any(|(name, backend)| {
            let desired = self.built.desired.backends.get(&name);
            let stays = |id: &InstanceId| desired.is_some_and(|desired| desired.instances.iter().any(|i| i.id == *id));
            let occupants = backend.servers.iter().map(|server| &server.occupant);
            occupants.filter(|occupant| !self.built.held.keeps(occupant)).filter_map(Occupant::id).any(|id| !stays(id))
        })
    }

    fn changes_process(&self, plan: &Plan, before: &Observed, after: &Observed) -> Result<(), Broken> {
        let growth = Growth::new(self.options.capabilities, &self.built.desired);
        let changes = Changes::new(&Runtime::of(before), before, after, &growth);
        let _ = Changes::new(&Runtime::loaded(after), after, after, &growth);
        hold!(changes.lacks.is_empty(), "the process lacks {:?}", changes.lacks);
        hold!(!plan.is_empty() || changes.is_empty(), "an empty plan changes {changes:?}");
        let done = Changes::new(&Runtime::of(after), after, after, &growth);
        hold!(done.is_empty(), "there is more to change: {done:?}");
        let is_added = |changes: &Changes, one: (&BackendName, &ServerName)| {
            changes.rest.iter().any(|action| matches!(action, Action::Add(..)) && action.server() == Some(one))
        };
        if plan.is_live() {
            for (name, found) in after.managed() {
                let known = before.backend(&name).map_or(&[][..], |backend| &backend.servers);
                for new in found.servers.iter().filter(|server| known.iter().all(|known| known.name != server.name)) {
                    let was_drift = before.backend(&name).is_some_and(|backend| backend.drifted.contains(&new.name));
                    hold!(was_drift || is_added(&changes, (&name, &new.name)), "{} is not added", new.name);
                }
            }
        }
        let without_backends = Runtime { backends: Some(BTreeMap::new()), ..Runtime::default() };
        for process in [Runtime::default(), without_backends] {
            let all = Changes::new(&process, after, after, &growth);
            for (name, found) in after.managed() {
                let is_whole = all.lacks.contains(&(name.clone(), None));
                let is_made = all.rest.iter().any(|action| matches!(action, Action::Make(made, ..) if *made == name));
                hold!(!is_whole || !is_made, "a process without {name} gets it twice");
                for one in found.servers.iter().map(|server| &server.name) {
                    let lacks = is_whole || all.lacks.contains(&(name.clone(), Some(one.clone())));
                    hold!(lacks != is_added(&all, (&name, one)), "a process without {one} gets it twice or not at all");
                }
            }
        }
        Ok(())
    }

    /// What was written is what was wanted, and instances that are gone are out.
    fn reads_back(&self, planned: &Planned, before: &Observed, after: &Observed) -> Result<(), Broken> {
        for (name, desired) in &self.built.desired.backends {
            let errors = |text: &str| text.starts_with("not routed") || text.contains("exists and is not ours");
            let is_concerned = |note: &nomad_haproxy::desired::Note| {
                note.severity == Severity::Error && desired.services.contains(&note.service) && errors(&note.text)
            };
            if planned.notes.iter().any(is_concerned) || self.refused.has_backend(name) {
                continue;
            }
            let is_refused = |id: &InstanceId| self.refused.has_instance(name, id);
            let Some(found) = after.backend(name) else {
                let nobody = !desired.instances.is_empty() && desired.instances.iter().all(|one| is_refused(&one.id));
                hold!(nobody, "{name} is not there");
                continue;
            };
            if desired.kind == BackendKind::Dynamic && found.is_ours() {
                hold!(
                    found.settings.as_ref() == Some(&desired.settings),
                    "{:?} in {name}: {:?}",
                    desired,
                    found.settings
                );
            }
            let weight = before.backend(name).map_or(before.default_weight, |backend| backend.default_weight);
            has_instances(name, desired, found, self, weight)?;
        }
        for (name, found) in after.managed() {
            let desired = self.built.desired.backends.get(&name);
            let occupants = found.servers.iter().map(|server| &server.occupant);
            let seated = occupants.filter(|occupant| !self.built.held.keeps(occupant)).filter_map(Occupant::id);
            let wanted: BTreeSet<&InstanceId> = desired.into_iter().flat_map(|d| &d.instances).map(|i| &i.id).collect();
            let gone: Vec<_> = seated.filter(|id| !wanted.contains(id)).collect();
            hold!(gone.is_empty(), "{gone:?} are gone, and in service in {name}");
        }
        self.keeps_the_held(before, after)
    }

    /// Whoever is held stays where it is, whatever else changes.
    fn keeps_the_held(&self, before: &Observed, after: &Observed) -> Result<(), Broken> {
        for (name, was) in before.managed() {
            let mut seats: BTreeMap<&InstanceId, u32> = BTreeMap::new();
            for id in was.servers.iter().filter_map(|server| server.occupant.id()) {
                *seats.entry(id).or_default() += 1;
            }
            // Of two servers that a person gave one instance or one number one goes, and so does one whose name
            // somebody changed.
            let is_slot =
                |server: &ServerName| name.slot_number(server).is_some_and(|n| n > 0 && name.slot(n) == *server);
            let numbers = |server: &ServerName| {
                was.servers.iter().filter(|other| name.slot_number(&other.name) == name.slot_number(server)).count()
            };
            for server in was.servers.iter().filter(|server| self.built.held.keeps(&server.occupant)) {
                let is_clear = server.occupant.id().is_some_and(|id| seats.get(id) == Some(&1));
                if !is_clear || !is_slot(&server.name) || numbers(&server.name) > 1 {
                    continue;
                }
                let found = after.backend(&name).into_iter().flat_map(|backend| &backend.servers);
                let found = found.filter(|found| found.name == server.name).map(|found| found.occupant.id());
                hold!(found.eq([server.occupant.id()]), "{server:?} is held, and not in {name} any more");
            }
        }
        Ok(())
    }
}

fn has_instances(
    name: &BackendName,
    desired: &Backend,
    found: &ObservedBackend,
    pass: &Pass<'_>,
    weight: u16,
) -> Result<(), Broken> {
    let Pass { built: Built { held, .. }, refused, .. } = pass;
    let mut wanted: BTreeMap<&InstanceId, Vec<&Instance>> = BTreeMap::new();
    for instance in &desired.instances {
        wanted.entry(&instance.id).or_default().push(instance);
    }
    for server in &found.servers {
        let Occupant::Instance { id, alloc, service, drain } = &server.occupant else { continue };
        if refused.has_instance(name, id) {
            continue;
        }
        let Some(instances) = wanted.remove(id) else {
            hold!(held.keeps(&server.occupant), "{id:?} is twice in {name}");
            continue;
        };
        let is_as_asked = instances.iter().any(|instance| {
            let weight = instance.options.weight.or(Some(weight));
            let options = ServerOptions { weight, ..instance.options.clone() };
            (&instance.address, instance.port, &instance.alloc, &instance.drain, &options)
                == (&server.address, server.port, alloc, drain, &server.options)
                && service.as_ref() == Some(&instance.service)
        });
        hold!(is_as_asked, "{server:?} is none of {instances:?}");
    }
    wanted.retain(|id, _| !refused.has_instance(name, id));
    hold!(wanted.is_empty(), "{name} lacks {wanted:?}");
    Ok(())
}
