//! Jobs without copies: what they do is wait for a word of the test.

use std::sync::mpsc::{Receiver, Sender, channel};

use super::super::table::{
    MOST_ENDED, MOST_LIVE, MOST_PARKED, MOST_RUNNING, MOST_STUCK, MOST_TEXT, MOST_THREADS,
    MOST_WEIGHT,
};
use super::*;
use crate::copy::progress::LOOK;

/// Longer than anything here takes, for tests that would else hang.
const PATIENCE: Duration = Duration::from_secs(60);

type Outcome = std::result::Result<(), Errno>;

/// A job that runs until it is released, or cancelled.
struct Held {
    number: u64,
    release: Sender<Result<()>>,
    ended: Receiver<Outcome>,
}

impl Held {
    fn end(&self) -> Outcome {
        self.ended.recv_timeout(PATIENCE).unwrap()
    }

    fn finish(self) {
        self.release.send(Ok(())).unwrap();
        assert_eq!(self.end(), Ok(()));
    }
}

fn registry() -> Arc<Registry> {
    Registry::new(Arc::new(Metrics::new()), None)
}

fn told() -> (OnEnd, Receiver<Outcome>) {
    let (sender, told) = channel();
    let on_end = move |outcome: Result<()>| {
        let _ = sender.send(outcome.map_err(|fail| fail.errno));
    };
    (Box::new(on_end), told)
}

fn nobody() -> Arc<CallerWatch> {
    Arc::new(CallerWatch::new(0))
}

fn new(owner: u32, title: &str, work: Work) -> (New, Receiver<Outcome>) {
    let (on_end, ended) = told();
    let new = New {
        owner,
        title: title.into(),
        limit: None,
        idle: false,
        work,
        waiter: Some((nobody(), on_end)),
    };
    (new, ended)
}

/// `deaf`: it does not look whether it is cancelled, as one that hangs in a system call.
fn enter(registry: &Arc<Registry>, owner: u32, deaf: bool) -> Held {
    let (release, held) = channel::<Result<()>>();
    let work = Box::new(move |job: &Job| {
        loop {
            if !deaf {
                job.progress.check()?;
            }
            match held.recv_timeout(LOOK / 10) {
                Ok(outcome) => return outcome,
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Ok(()),
                Err(_) => {}
            }
        }
    });
    let (new, ended) = new(owner, "a -> b", work);
    let number = registry.enter(new).unwrap();
    Held {
        number,
        release,
        ended,
    }
}

fn state(registry: &Registry, number: u64) -> State {
    let views = registry.views(0);
    let view = views.into_iter().find(|view| view.number == number);
    view.unwrap().state
}

#[track_caller]
fn await_state(registry: &Registry, held: &Held, wanted: State) {
    let start = Instant::now();
    while state(registry, held.number) != wanted {
        assert!(start.elapsed() < PATIENCE, "{:?}", registry.views(0));
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn await_quiet(registry: &Registry) {
    let start = Instant::now();
    loop {
        let table = registry.table.lock();
        let taken = [
            &table.running,
            &table.parked,
            &table.stuck,
            &table.lives,
            &table.weight,
        ];
        if taken.iter().all(|shares| shares.taken() == 0) {
            assert!(table.live.is_empty() && table.turns.is_empty() && table.stopping.is_empty());
            return;
        }
        drop(table);
        assert!(start.elapsed() < PATIENCE, "{:?}", registry.views(0));
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn fail(errno: Errno) -> Result<()> {
    Err(Fail::new(errno, "open").because("why"))
}

#[test]
fn the_list_tells_state_names_and_errors() {
    let registry = registry();
    enter(&registry, 7, false).finish();
    let failed = enter(&registry, 8, false);
    failed.release.send(fail(Errno::NOENT)).unwrap();
    assert_eq!(failed.end(), Err(Errno::NOENT));
    registry.refuse(7, b"x\xff", &Fail::new(Errno::INVAL, "parse"));
    let running = enter(&registry, 7, false);
    await_state(&registry, &running, State::Running);

    let all = registry.describe(0);
    let lines: Vec<_> = all.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(lines[0].starts_with("    1  done ") && lines[0].ends_with("-  a -> b"));
    assert!(lines[1].starts_with("    2  failed"));
    assert_eq!(
        lines[2].trim(),
        "open: why: No such file or directory (os error 2)"
    );
    assert!(lines[3].ends_with(r"$'x\377'"));
    assert!(lines[5].starts_with("    4  running"));

    let own = registry.describe(8);
    assert!(own.contains("2  failed") && !own.contains("done") && !own.contains("running"));
    registry.cancel(7, Which::One(running.number)).unwrap();
    assert_eq!(running.end(), Err(Errno::CANCELED));
    assert!(registry.describe(7).contains("4  cancelled"));
    await_quiet(&registry);
}

#[test]
fn json_tells_a_caller_of_his_own() {
    let registry = registry();
    let failed = enter(&registry, 8, false);
    failed.release.send(fail(Errno::NOSPC)).unwrap();
    assert_eq!(failed.end(), Err(Errno::NOSPC));
    enter(&registry, 9, false).finish();
    let all: serde_json::Value = serde_json::from_str(&registry.json(0)).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 2);
    let own: serde_json::Value = serde_json::from_str(&registry.json(8)).unwrap();
    assert_eq!(own.as_array().unwrap().len(), 1);
    let job = own[0].as_object().unwrap();
    assert_eq!(job["state"], "failed");
    assert_eq!(
        (&job["number"], &job["owner"], &job["errno"]),
        (&1.into(), &8.into(), &28.into())
    );
    assert_eq!(job["title"], "a -> b");
    for number in [
        "workers",
        "bytes_done",
        "bytes_total",
        "files_done",
        "files_total",
        "rate_now",
        "rate_mean",
        "seconds",
        "failed",
    ] {
        assert!(job[number].is_number(), "{number}: {job:?}");
    }
    assert!(job["method"].is_null() && job["seconds_left"].is_null());
    assert!(job["errors"].is_array() && job["error"].is_string() && job["totals_known"] == false);
    assert_eq!(registry.json(77), "[]\n");
}

#[test]
fn few_run_at_once_but_another_need_not_wait_for_them() {
    let registry = registry();
    let mine: Vec<_> = (0..MOST_RUNNING + 2)
        .map(|_| enter(&registry, 1, false))
        .collect();
    for held in &mine[..MOST_RUNNING] {
        await_state(&registry, held, State::Running);
    }
    assert_eq!(state(&registry, mine[MOST_RUNNING].number), State::Queued);
    let theirs = [enter(&registry, 2, false), enter(&registry, 2, false)];
    await_state(&registry, &theirs[0], State::Running);
    assert_eq!(state(&registry, theirs[1].number), State::Queued);
    await_running(&registry, MOST_RUNNING + 1);
    for held in mine.into_iter().chain(theirs) {
        held.finish();
    }
    await_quiet(&registry);
    await_running(&registry, 0);
}

/// Until so many are counted as those that run, whatever waits beside them.
fn await_running(registry: &Registry, count: usize) {
    let line = format!("\ncorfs_copies_running {count}\n");
    let deadline = Instant::now() + PATIENCE;
    while !registry.metrics.open_metrics().contains(&line) {
        assert!(Instant::now() < deadline, "{count} run");
        std::thread::sleep(LOOK);
    }
}

#[test]
fn callers_get_their_turns_alternately() {
    let registry = registry();
    let busy: Vec<_> = (0..MOST_RUNNING)
        .map(|_| enter(&registry, 3, false))
        .collect();
    busy.iter()
        .for_each(|held| await_state(&registry, held, State::Running));
    let order = Arc::new(Mutex::new(Vec::new()));
    registry.table.lock().running.take(1, 1);
    registry.table.lock().running.take(2, 1);
    let mut ends = Vec::new();
    for owner in [1, 1, 1, 1, 2, 2] {
        let order = Arc::clone(&order);
        let note = move |job: &Job| {
            order.lock().push(job.owner);
            Ok(())
        };
        let (new, ended) = new(owner, "x", Box::new(note));
        registry.enter(new).unwrap();
        ends.push(ended);
    }
    {
        let mut table = registry.table.lock();
        table.running.give_back(1, 1);
        table.running.give_back(2, 1);
        let mut turns = Vec::new();
        while let Some((owner, number)) = table.turns.pop(|_, _| true) {
            turns.push((owner, number));
        }
        let owners: Vec<_> = turns.iter().map(|(owner, _)| *owner).collect();
        assert_eq!(owners, [1, 2, 1, 2, 1, 1]);
        for (owner, number) in turns {
            table.turns.push(owner, number);
        }
    }
    busy.into_iter().for_each(Held::finish);
    for ended in ends {
        assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Ok(()));
    }
    assert_eq!(order.lock().len(), 6);
    await_quiet(&registry);
}

#[test]
fn what_waits_is_cancelled_without_ever_running() {
    let registry = registry();
    let running: Vec<_> = (0..MOST_RUNNING)
        .map(|_| enter(&registry, 1, false))
        .collect();
    let waits = enter(&registry, 1, false);
    registry.cancel(1, Which::One(waits.number)).unwrap();
    assert_eq!(waits.end(), Err(Errno::CANCELED));
    assert_eq!(
        registry
            .cancel(1, Which::One(waits.number))
            .unwrap_err()
            .errno,
        Errno::SRCH
    );
    registry.cancel(1, Which::All).unwrap();
    for held in running {
        assert_eq!(held.end(), Err(Errno::CANCELED));
    }
    registry.cancel(1, Which::All).unwrap();
    await_quiet(&registry);
}

#[test]
fn what_a_cancelled_job_has_left_behind_is_told() {
    let registry = registry();
    let error = |held: &Held| {
        let views = registry.views(1);
        let view = views.into_iter().find(|view| view.number == held.number);
        view.unwrap().error.unwrap()
    };
    for (detail, wanted) in [
        ("cancelled; a mixture", "cancelled; a mixture: "),
        ("cancelled", "copy: cancelled: "),
    ] {
        let held = enter(&registry, 1, true);
        await_state(&registry, &held, State::Running);
        registry.cancel(1, Which::One(held.number)).unwrap();
        let stopped = Fail::new(Errno::INTR, "copy").because(detail);
        held.release.send(Err(stopped)).unwrap();
        assert_eq!(held.end(), Err(Errno::CANCELED));
        assert!(error(&held).contains(wanted), "{}", error(&held));
    }
    await_quiet(&registry);
}

#[test]
fn what_is_anothers_is_not_there_but_for_root() {
    let registry = registry();
    let held = enter(&registry, 1, false);
    let number = held.number;
    let errno = |outcome: Result<()>| outcome.unwrap_err().errno;
    assert_eq!(errno(registry.cancel(2, Which::One(number))), Errno::SRCH);
    assert_eq!(errno(registry.hold(2, number, true)), Errno::SRCH);
    assert_eq!(errno(registry.hold(2, number, false)), Errno::SRCH);
    let waits = registry.wait(2, number, nobody(), told().0);
    assert_eq!(waits.err().unwrap().errno, Errno::SRCH);
    registry.cancel(2, Which::All).unwrap();
    assert_eq!(registry.views(2).len(), 0);
    assert!(held.ended.try_recv().is_err());
    registry.hold(0, number, true).unwrap();
    registry.hold(0, number, false).unwrap();
    registry.cancel(0, Which::All).unwrap();
    assert_eq!(held.end(), Err(Errno::CANCELED));
    assert_eq!(errno(registry.cancel(0, Which::One(99))), Errno::SRCH);
}

#[test]
fn a_wait_is_answered_with_the_errno_of_the_job() {
    let registry = registry();
    let job = enter(&registry, 1, false);
    let waits = |who: u32, number: u64| {
        let (on_end, told) = told();
        match registry.wait(who, number, nobody(), on_end).unwrap() {
            Waited::Later => told.recv_timeout(PATIENCE).unwrap(),
            Waited::Now(outcome) => outcome.map_err(|fail| fail.errno),
        }
    };
    std::thread::scope(|scope| {
        let answers = [0, 1].map(|who| scope.spawn(move || waits(who, job.number)));
        // Both ways are right; that they wait is what is tried.
        while registry.table.lock().live[&job.number]
            .course
            .lock()
            .waiting
            .len()
            < 3
        {
            std::thread::yield_now();
        }
        job.release.send(fail(Errno::DQUOT)).unwrap();
        for answer in answers {
            assert_eq!(answer.join().unwrap(), Err(Errno::DQUOT));
        }
    });
    assert_eq!(waits(1, job.number), Err(Errno::DQUOT), "also later");
    let cancelled = enter(&registry, 1, false);
    registry.cancel(1, Which::All).unwrap();
    assert_eq!(cancelled.end(), Err(Errno::CANCELED));
    assert_eq!(waits(0, cancelled.number), Err(Errno::CANCELED));
    let done = enter(&registry, 1, false);
    let number = done.number;
    done.finish();
    assert_eq!(waits(1, number), Ok(()));
}

#[test]
fn a_held_job_leaves_its_turn_and_comes_back() {
    let registry = registry();
    let first: Vec<_> = (0..MOST_RUNNING)
        .map(|_| enter(&registry, 1, false))
        .collect();
    let next = enter(&registry, 1, false);
    await_state(&registry, &first[0], State::Running);
    registry.hold(1, first[0].number, true).unwrap();
    registry.hold(1, first[0].number, true).unwrap();
    await_state(&registry, &first[0], State::Paused);
    await_state(&registry, &next, State::Running);
    // There is no turn for it now.
    registry.hold(1, first[0].number, false).unwrap();
    await_state(&registry, &first[0], State::Queued);
    assert!(
        registry.table.lock().live[&first[0].number]
            .progress
            .is_paused()
    );
    next.finish();
    await_state(&registry, &first[0], State::Running);
    assert!(
        !registry.table.lock().live[&first[0].number]
            .progress
            .is_paused()
    );
    // One that has not begun is held, too, and both can be cancelled.
    let waits = enter(&registry, 1, false);
    registry.hold(1, waits.number, true).unwrap();
    registry.hold(1, first[1].number, true).unwrap();
    await_state(&registry, &waits, State::Paused);
    registry.cancel(1, Which::All).unwrap();
    for held in first.iter().chain([&waits]) {
        assert_eq!(held.end(), Err(Errno::CANCELED));
    }
    await_quiet(&registry);
}

#[test]
fn no_more_are_held_within_their_course_than_may_be() {
    let registry = registry();
    let mut held = Vec::new();
    for _ in 0..MOST_PARKED.0 {
        let job = enter(&registry, 1, false);
        await_state(&registry, &job, State::Running);
        registry.hold(1, job.number, true).unwrap();
        held.push(job);
    }
    let more = enter(&registry, 1, false);
    await_state(&registry, &more, State::Running);
    assert_eq!(
        registry.hold(1, more.number, true).unwrap_err().errno,
        Errno::AGAIN
    );
    more.finish();
    registry.cancel(0, Which::All).unwrap();
    for job in held {
        assert_eq!(job.end(), Err(Errno::CANCELED));
    }
    await_quiet(&registry);
}

#[test]
fn held_and_hanging_jobs_of_many_keep_nobody_from_a_turn() {
    let registry = registry();
    let mut held = Vec::new();
    for owner in 1..=4 {
        for _ in 0..MOST_PARKED.0 {
            let job = enter(&registry, owner, false);
            await_state(&registry, &job, State::Running);
            registry.hold(owner, job.number, true).unwrap();
            held.push(job);
        }
    }
    assert_eq!(registry.table.lock().parked.taken(), MOST_PARKED.1);
    for owner in 1..=5 {
        enter(&registry, owner, false).finish();
    }
    // More of them would be too many, but for one who has none.
    for (owner, wanted) in [(5, Ok(())), (5, Err(Errno::AGAIN)), (1, Err(Errno::AGAIN))] {
        let job = enter(&registry, owner, false);
        await_state(&registry, &job, State::Running);
        let outcome = registry.hold(owner, job.number, true);
        assert_eq!(outcome.map_err(|fail| fail.errno), wanted);
        held.push(job);
    }
    // Nor do threads that never come back: one who has nothing running begins.
    registry.table.lock().stuck.take(6, MOST_THREADS);
    enter(&registry, 7, false).finish();
    registry.table.lock().stuck.give_back(6, MOST_THREADS);
    registry.cancel(0, Which::All).unwrap();
    for job in held {
        assert_eq!(job.end(), Err(Errno::CANCELED));
    }
    await_quiet(&registry);
}

#[test]
fn one_that_hangs_is_answered_without_its_thread() {
    let registry = registry();
    let hang: Vec<_> = (0..MOST_STUCK.0)
        .map(|_| enter(&registry, 1, true))
        .collect();
    hang.iter()
        .for_each(|held| await_state(&registry, held, State::Running));
    registry.cancel(1, Which::All).unwrap();
    for held in &hang {
        assert_eq!(held.end(), Err(Errno::CANCELED));
        assert_eq!(state(&registry, held.number), State::Cancelled);
    }
    // Their owner has no turn as long as all of them hang; others have.
    let waits = enter(&registry, 1, false);
    enter(&registry, 2, false).finish();
    assert_eq!(state(&registry, waits.number), State::Queued);
    // What they say when they come back at last changes nothing.
    hang[0].release.send(fail(Errno::IO)).unwrap();
    waits.finish();
    assert_eq!(state(&registry, hang[0].number), State::Cancelled);
    registry.close();
    for held in &hang[1..] {
        held.release.send(Ok(())).unwrap();
    }
    registry.drain();
    await_quiet(&registry);
}

#[test]
fn a_mount_that_goes_away_does_not_wait_for_ever() {
    let registry = registry();
    let (hangs, looks) = (enter(&registry, 1, true), enter(&registry, 1, false));
    await_state(&registry, &hangs, State::Running);
    registry.close();
    registry.drain();
    assert_eq!(
        (hangs.end(), looks.end()),
        (Err(Errno::CANCELED), Err(Errno::CANCELED))
    );
    assert_eq!(registry.table.lock().stuck.taken(), 1);
    let (new, _) = new(1, "x", Box::new(|_| Ok(())));
    assert_eq!(registry.enter(new).err().unwrap().errno, Errno::CANCELED);
    drop(hangs.release);
    await_quiet(&registry);
}

#[test]
fn nobody_has_more_than_his_share() {
    let registry = registry();
    let fill = |owner| {
        for _ in 0..MOST_LIVE.0 {
            let (new, _) = new(
                owner,
                "x",
                Box::new(|job| {
                    loop {
                        job.progress.check()?;
                        std::thread::sleep(LOOK);
                    }
                }),
            );
            registry.enter(new).unwrap();
        }
        let (new, _) = new(owner, "x", Box::new(|_| Ok(())));
        let fail = registry.enter(new).err().unwrap();
        assert_eq!(fail.errno, Errno::AGAIN);
        assert!(fail.detail.unwrap().contains("1024 of your copies"));
    };
    (1..=4).for_each(fill);
    let late = enter(&registry, 5, false);
    await_state(&registry, &late, State::Running);
    late.finish();
    let (heavy, _) = new(6, &"x".repeat(MOST_WEIGHT.0 + 1), Box::new(|_| Ok(())));
    assert_eq!(registry.enter(heavy).err().unwrap().errno, Errno::AGAIN);
    registry.close();
    registry.drain();
    await_quiet(&registry);
}

#[test]
fn old_jobs_are_forgotten_by_count_and_by_length() {
    let registry = registry();
    let refusal = Fail::new(Errno::INVAL, "parse");
    registry.refuse(2, b"of another", &refusal);
    for _ in 0..MOST_ENDED.0 + 9 {
        registry.refuse(1, b"x", &refusal);
    }
    assert_eq!(registry.views(1).len(), MOST_ENDED.0);
    assert_eq!(
        registry.views(2).len(),
        1,
        "one's many do not push out another's"
    );
    for _ in 0..40 {
        registry.refuse(1, &[b'y'; 60 << 10], &refusal);
    }
    assert_eq!(registry.views(2).len(), 1);
    let table = registry.table.lock();
    let kept: usize = table.ended.iter().map(|(_, job)| job.text_len()).sum();
    assert_eq!(kept, table.ended_text);
    assert_eq!(table.ended_by.taken(), table.ended.len());
    assert!(kept <= MOST_TEXT && table.ended.len() > 10);
}

#[test]
fn who_is_turned_away_is_told_why() {
    let registry = registry();
    let why = Fail::new(Errno::AGAIN, "write").because("no room");
    for user in [1, 1, 2] {
        registry.turn_away(user, &why);
    }
    let own = registry.describe(1);
    assert!(own.contains("# 2 lines of user 1 were not taken; write: no room"));
    assert!(!own.contains("user 2") && registry.describe(0).contains("user 2"));
    for user in 0..1000 {
        registry.turn_away(user, &why);
    }
    assert!(registry.table.lock().turned_away.len() <= MOST_TURNED_AWAY);
}

#[test]
fn a_defect_ends_its_job_alone() {
    let registry = registry();
    for idle in [false, true] {
        let (mut new, ended) = new(1, "x", Box::new(|_| panic!("on purpose")));
        new.idle = idle;
        registry.enter(new).unwrap();
        assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Err(Errno::IO));
    }
    enter(&registry, 1, false).finish();
    await_quiet(&registry);
}

#[test]
fn idle_jobs_run_behind_all_others_and_leave_no_trace() {
    let registry = registry();
    let policy = || std::fs::read_to_string("/proc/thread-self/sched").unwrap_or_default();
    let of = |idle: bool| {
        let (sender, seen) = channel();
        let work = move |_: &Job| {
            sender.send(policy()).unwrap();
            Ok(())
        };
        let (mut new, ended) = new(1, "x", Box::new(work));
        new.idle = idle;
        registry.enter(new).unwrap();
        assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Ok(()));
        let text = seen.recv_timeout(PATIENCE).unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("policy"))
            .map(str::to_owned);
        line.and_then(|line| line.rsplit(' ').next().map(str::to_owned))
    };
    // SCHED_IDLE is 5; a kernel without CONFIG_SCHED_DEBUG tells nothing.
    if let Some(idle) = of(true) {
        assert_eq!(idle, "5");
        assert_eq!(of(false).as_deref(), Some("0"));
    }
}
