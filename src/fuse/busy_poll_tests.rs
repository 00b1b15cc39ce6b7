use super::*;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;

const WINDOW: Duration = Duration::from_millis(1);
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection without requests, and whether to wait there for the next of so many loops' is
/// known to be worth it. Who drops the writing end, or writes there, makes a request.
fn stand(loops: usize, worth_it: bool) -> (BusyPoll, OwnedFd) {
    let (device, requests) = rustix::pipe::pipe().unwrap();
    let busy_poll = BusyPoll::new(WINDOW, loops);
    busy_poll.attach(device);
    if worth_it {
        busy_poll.caught.0.store(1000, Ordering::Relaxed);
        busy_poll.pause.0.store(0, Ordering::Relaxed);
    }
    (busy_poll, requests)
}

fn reading(busy_poll: &BusyPoll) -> usize {
    busy_poll.reading.load(Ordering::Acquire)
}

fn leader(busy_poll: &BusyPoll) -> u64 {
    busy_poll.leader.load(Ordering::Acquire)
}

fn serve(busy_poll: &BusyPoll) {
    busy_poll.went(busy_poll.came(true), true);
}

#[test]
fn who_is_not_asked_to_wait_awake_counts_nothing() {
    let busy_poll = BusyPoll::new(Duration::ZERO, 4);
    serve(&busy_poll);
    assert_eq!((reading(&busy_poll), leader(&busy_poll)), (4, NOBODY));
    assert_eq!(busy_poll.done.load(Ordering::Relaxed), 0);
}

#[test]
fn a_lone_loop_waits_until_there_is_a_request_and_gives_up_when_there_is_none() {
    let (busy_poll, requests) = stand(1, true);
    serve(&busy_poll);
    // In vain, once.
    assert_eq!((reading(&busy_poll), leader(&busy_poll)), (1, NOBODY));
    assert_eq!(busy_poll.caught.get(), 875);
    let began = busy_poll.came(true);
    let gave_up = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while leader(&busy_poll) == NOBODY && !gave_up.load(Ordering::Acquire) {
                thread::yield_now();
            }
            rustix::io::write(&requests, b"x").unwrap();
        });
        // It may miss one that comes late, on a busy machine, and be done before anybody saw it
        // wait.
        busy_poll.went(began, true);
        gave_up.store(true, Ordering::Release);
    });
    assert_ne!(busy_poll.caught.get(), 875);
    assert_eq!(reading(&busy_poll), 1);
}

#[test]
fn when_it_is_in_vain_it_is_tried_now_and_then_and_not_when_nobody_asks() {
    let (busy_poll, _requests) = stand(1, false);
    busy_poll.caught.0.store(400, Ordering::Relaxed);
    busy_poll.pause.0.store(0, Ordering::Relaxed);
    let began = busy_poll.came(true);
    busy_poll.went(began, true);
    assert_eq!(busy_poll.caught.get(), 350);
    for _ in 1..TRY_AFTER {
        busy_poll.pause.0.store(0, Ordering::Relaxed);
        serve(&busy_poll);
        assert_eq!(busy_poll.caught.get(), 350);
    }
    busy_poll.pause.0.store(0, Ordering::Relaxed);
    serve(&busy_poll);
    assert!(busy_poll.caught.get() < 350);
    let before = busy_poll.caught.get();
    for _ in 0..3 * TRY_AFTER {
        let most = busy_poll.window * LONGEST_PAUSE;
        busy_poll.pause.0.store(most, Ordering::Relaxed);
        serve(&busy_poll);
    }
    assert_eq!(busy_poll.caught.get(), before);
}

/// Also where nobody waits for every second request: after those one does not look.
#[test]
fn after_a_crowd_has_gone_it_is_soon_tried_for_the_last() {
    for pattern in [&[true][..], &[true, false], &[false, true]] {
        let (busy_poll, _requests) = stand(1, false);
        busy_poll.backlog.0.store(1000, Ordering::Relaxed);
        let tried = pattern.iter().cycle().take(100).position(|awaited| {
            busy_poll.pause.0.store(0, Ordering::Relaxed);
            busy_poll.caught.0.store(400, Ordering::Relaxed);
            busy_poll.went(busy_poll.came(*awaited), *awaited);
            busy_poll.caught.get() != 400
        });
        assert!(tried.is_some_and(|requests| requests > 10), "{tried:?}");
    }
}

#[test]
fn who_does_not_lead_stays_away_until_the_work_is_for_all() {
    let (busy_poll, _requests) = stand(2, true);
    busy_poll.leader.store(u64::MAX, Ordering::Release);
    let (told, hears) = channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            serve(&busy_poll);
            told.send(()).unwrap();
        });
        // As long as the leader is done with requests.
        for _ in 0..20 {
            let now = busy_poll.now();
            busy_poll.done.store(now, Ordering::Relaxed);
            thread::sleep(LOOK / 20);
        }
        busy_poll.backlog.0.store(1000, Ordering::Relaxed);
        hears.recv_timeout(PATIENCE).unwrap();
    });
    assert_eq!(reading(&busy_poll), 2);
    assert_eq!(busy_poll.away.load(Ordering::Acquire), 0);
}

#[test]
fn who_stays_away_takes_over_from_a_leader_that_got_stuck() {
    let (busy_poll, _requests) = stand(2, true);
    busy_poll.leader.store(u64::MAX, Ordering::Release);
    thread::scope(|scope| {
        scope.spawn(|| serve(&busy_poll));
    });
    assert_eq!((reading(&busy_poll), leader(&busy_poll)), (2, NOBODY));
}

#[test]
fn clients_that_go_on_while_half_of_their_requests_are_served_stay_apart() {
    let (busy_poll, requests) = stand(1, true);
    rustix::io::write(&requests, b"x").unwrap();
    let all_of = |pattern: &[bool]| {
        let mut waited_for = Vec::new();
        for awaited in pattern.repeat(20) {
            busy_poll.went(busy_poll.came(awaited), awaited);
            waited_for.push(busy_poll.is_waited_for());
        }
        let last = &waited_for[10 * pattern.len()..];
        assert!(last.iter().all(|one| *one == last[0]), "{last:?}");
        last[0]
    };
    // Opendir and releasedir; open, read and release; create, write, flush and release.
    assert!(!all_of(&[true, false]));
    assert!(all_of(&[true, true, false]));
    assert!(all_of(&[true, true, true, false]));
}

/// Of one request that names many, as the FUSE library hands them out.
#[test]
fn who_forgets_many_does_not_wait_between_them() {
    let (busy_poll, _requests) = stand(2, true);
    busy_poll.leader.store(u64::MAX, Ordering::Release);
    let counted = [7, 7, 7, 8].map(|unique| busy_poll.forgets(unique).is_some());
    assert_eq!(counted, [true, false, false, true]);
    // Who had stayed away would have taken the lead from one that is never done.
    assert_eq!((reading(&busy_poll), leader(&busy_poll)), (2, u64::MAX));
    assert!(busy_poll.done.load(Ordering::Relaxed) > 0);
}

#[test]
fn the_end_of_the_connection_ends_the_waiting() {
    let (busy_poll, requests) = stand(1, true);
    drop(requests);
    serve(&busy_poll);
    assert_eq!((reading(&busy_poll), busy_poll.backlog.get()), (1, 125));
}
