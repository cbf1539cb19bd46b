//! What is promised of the pace, held against all that calls may do. Times are nanoseconds.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    num::NonZeroU32,
};

use proptest::prelude::*;

use super::{
    cell::{Cell, RECOVERY, SLOWEST, Signal, nanos},
    state::{Asked, Places, State},
};
use crate::{PaceLevel, PaceRate};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

fn per_second(calls: u32) -> PaceRate {
    PaceRate::per_second(NonZeroU32::new(calls).expect("not zero"))
}

fn per_minute(calls: u32) -> PaceRate {
    PaceRate::per_minute(NonZeroU32::new(calls).expect("not zero"))
}

/// Calls of everybody, and of some of three bots.
fn state(app: PaceRate, bot: PaceRate) -> State<usize> {
    let mut state = State::new();
    state.add(PaceLevel::new("app", app));
    state.add(PaceLevel::new("bot", bot).per_bot());
    state
}

fn keys(bot: Option<usize>) -> Vec<(usize, Cow<'static, str>)> {
    let bot = bot.map(|bot| (1, Cow::Borrowed(["a", "b", "c"][bot])));
    [Some((0, Cow::Borrowed(""))), bot].into_iter().flatten().collect()
}

/// Plays a state: `ask` and `run` as the policy and its task would.
struct Play {
    state: State<usize>,
    now: u64,
    /// When each call went, by its number.
    sent: BTreeMap<usize, (u64, Places)>,
}

impl Play {
    fn new(state: State<usize>) -> Self {
        Self { state, now: 0, sent: BTreeMap::new() }
    }

    fn advance(&mut self) {
        for (number, places) in self.state.advance(self.now) {
            assert!(self.sent.insert(number, (self.now, places)).is_none(), "goes once");
        }
    }

    fn ask(&mut self, number: usize, bot: Option<usize>, patience: u64) -> Option<u64> {
        if self.state.is_due(self.now) {
            self.advance();
        }
        let places = self.state.places(&keys(bot), self.now);
        match self.state.ask(places, self.now, self.now.saturating_add(patience), || number) {
            Asked::Go(places) => {
                self.sent.insert(number, (self.now, places));
                None
            }
            Asked::Wait { ticket, .. } => Some(ticket),
            Asked::TooLate(_) | Asked::Full(_) => None,
        }
    }

    /// Time passes; the timers are late by so much.
    fn run(&mut self, until: u64, late: u64) {
        while let Some(due) = self.state.due().map(|due| due.max(self.now) + late).filter(|due| *due <= until) {
            self.now = due;
            self.advance();
        }
        self.now = until;
    }

    fn times(&self, of: impl Fn(usize) -> bool) -> Vec<u64> {
        let mut times: Vec<_> = self.sent.iter().filter(|(number, _)| of(**number)).map(|(_, sent)| sent.0).collect();
        times.sort_unstable();
        times
    }
}

/// In any stretch of the rate's time there are no more calls than it says, also where some take 95 ms longer on their way.
fn kept(times: &[u64], rate: PaceRate) -> bool {
    let calls = rate.calls.get() as usize;
    times.iter().zip(times.iter().skip(calls)).all(|(first, last)| last - first >= nanos(rate.per) + 95 * MS)
}

fn a_rate() -> impl Strategy<Value = PaceRate> {
    prop_oneof![(1_u32..60).prop_map(per_second), (1_u32..3000).prop_map(per_minute)]
}

proptest! {
    #[test]
    fn no_stretch_has_more_calls_than_a_level_allows_and_those_alike_go_in_their_order(
        app in a_rate(), bot in a_rate(), late in 0..=5 * MS,
        steps in prop::collection::vec((0..300 * MS, prop::option::of(0_usize..3), any::<bool>()), 1..150),
    ) {
        let mut play = Play::new(state(app, bot));
        let mut bots = Vec::new();
        let mut left = Vec::new();
        for (number, (step, bot, leaves)) in steps.into_iter().enumerate() {
            play.run(play.now + step, late);
            let ticket = play.ask(number, bot, u64::MAX);
            bots.push(bot);
            if let Some(ticket) = ticket.filter(|_| leaves) {
                prop_assert!(play.state.leave(ticket).is_some());
                left.push(number);
            }
        }
        play.run(u64::MAX / 2, late);
        prop_assert_eq!(play.sent.len() + left.len(), bots.len(), "who waits goes, who left does not");
        let mut passed = play.sent.values().flat_map(|(_, places)| places);
        prop_assert!(passed.all(|place| place.cell().waiting == 0), "nobody waits");
        prop_assert!(kept(&play.times(|_| true), app));
        for of in [None, Some(0), Some(1), Some(2)] {
            prop_assert!(of.is_none() || kept(&play.times(|number| bots[number] == of), bot));
            let alike = play.sent.iter().filter(|(number, _)| bots[**number] == of);
            prop_assert!(alike.map(|(_, sent)| sent.0).is_sorted());
        }
    }

    #[test]
    fn a_turn_comes_as_early_as_it_may(app in 1_u32..100, late in 0..=4 * MS, calls in 1_usize..300) {
        let mut play = Play::new(state(per_second(app), per_second(app)));
        (0..calls).for_each(|number| _ = play.ask(number, None, u64::MAX));
        play.run(u64::MAX / 2, late);
        // Nine tenths of the rate, whatever the timers do.
        let last = play.times(|_| true)[calls - 1];
        let due = (calls - 1) as u64 * (10 * SECOND).div_ceil(9 * u64::from(app));
        prop_assert!((due.saturating_sub(5 * MS)..=due + late).contains(&last), "{last} of {due}");
    }

    #[test]
    fn no_stretch_has_more_calls_than_its_fastest_moment_allows(
        calls in 1_u32..200, answers in prop::collection::vec((0_u8..8, 0..500 * MS, 0..2 * SECOND), 1..300),
    ) {
        let mut cell = Cell::new(Some(per_second(calls)).into());
        let (mut now, mut sent) = (0, Vec::new());
        for (answer, step, before) in answers {
            now = cell.free_at().max(now) + step * u64::from(answer > 3);
            cell.take(now);
            sent.push((now, cell.per_second()));
            match answer {
                0 => _ = cell.refused(Signal::Slow(None), now.saturating_sub(before), now + 1),
                1 => _ = cell.refused(Signal::Slow(Some(before)), now, now + 1),
                2 => _ = cell.refused(Signal::Stop(Some(before)), now, now + 1),
                _ => _ = cell.accepted(now, now + 1),
            }
            prop_assert!(cell.per_second() <= f64::from(calls) * 0.9 + 1e-6 && cell.per_second() >= 0.1_f64.min(f64::from(calls) * 0.9) - 1e-6);
        }
        for first in 0..sent.len() {
            for last in first..sent.len() {
                let fastest = sent[first..=last].iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
                let time = (sent[last].0 - sent[first].0 + 5 * MS) as f64 / 1e9;
                // The first one counts, and each but the last takes its time.
                prop_assert!((last - first) as f64 <= fastest * time + 1e-3, "{first} to {last}");
            }
        }
    }

    #[test]
    fn the_whole_rate_is_back_a_minute_after_the_last_refusal(
        calls in 1_u32..200, refusals in prop::collection::vec((0..2 * SECOND, any::<bool>(), 0..20 * SECOND), 1..50),
    ) {
        let mut cell = Cell::new(Some(per_second(calls)).into());
        let whole = cell.per_second();
        let mut now = 0;
        for (step, stops, pause) in refusals {
            now = cell.free_at().max(now + step);
            cell.take(now);
            let signal = if stops { Signal::Stop(Some(pause)) } else { Signal::Slow(Some(pause)) };
            prop_assert!(cell.refused(signal, now, now + 1));
        }
        let from = cell.free_at().max(now);
        let mut last = cell.per_second();
        // Whoever had no call before the minute was over finds out with the next.
        while now < from + RECOVERY + SLOWEST {
            now = cell.free_at().max(now + 1);
            cell.take(now);
            cell.accepted(now, now + 1);
            prop_assert!(cell.per_second() >= last, "it only rises");
            last = cell.per_second();
        }
        prop_assert!((cell.per_second() - whole).abs() < 1e-9 && !cell.is_slow());
    }
}

#[test]
fn many_refusals_of_one_moment_count_once() {
    let mut cell = Cell::new(Some(per_second(100)).into());
    let mut sent = Vec::new();
    for _ in 0..20 {
        sent.push(cell.free_at());
        cell.take(cell.free_at());
    }
    let now = sent[19] + 50 * MS;
    let news: Vec<_> = sent.iter().map(|sent| cell.refused(Signal::Slow(None), *sent, now)).collect();
    assert_eq!((news.iter().filter(|news| **news).count(), news[0]), (1, true));
    assert!((cell.per_second() - 45.0).abs() < 1e-3);
    // Nor does one that succeeds say anything, which was sent at the former rate.
    assert!(!cell.accepted(sent[19], now + SECOND));
    // Another one, sent since.
    assert!(cell.refused(Signal::Slow(None), now + 1, now + 2));
    assert!((cell.per_second() - 22.5).abs() < 1e-3);
    // What it was told to wait counts whoever heard it.
    assert!(!cell.refused(Signal::Slow(Some(3 * SECOND)), sent[0], now + 3));
    assert_eq!(cell.free_at(), now + 3 + 3 * SECOND);
}

#[test]
fn a_quota_that_is_used_up_pauses_and_one_call_finds_out() {
    let mut cell = Cell::new(Some(per_second(100)).into());
    cell.take(0);
    assert!(cell.refused(Signal::Stop(None), 0, 1));
    assert!(!cell.refused(Signal::Stop(None), 0, 2), "it was known");
    let again = cell.free_at();
    assert_eq!((again, cell.is_spent(again - 1), cell.is_spent(again)), (2 + 600 * SECOND, true, false));
    cell.take(again);
    assert!(cell.free_at() >= again + SLOWEST - 6 * MS, "one call");
    assert!(cell.refused(Signal::Stop(Some(100 * 3600 * SECOND)), again, again + 1));
    assert_eq!(cell.free_at(), again + 1 + 3600 * SECOND, "an hour at most");
}

#[test]
fn a_pause_is_no_recovery() {
    let mut cell = Cell::new(Some(per_second(100)).into());
    cell.take(0);
    assert!(cell.refused(Signal::Slow(Some(50 * SECOND)), 0, 1));
    let again = cell.free_at();
    cell.take(again);
    assert!(cell.accepted(again, again + SECOND));
    // Half, and a sixtieth for the second.
    assert!((cell.per_second() - 46.5).abs() < 1e-3, "{}", cell.per_second());
}

#[test]
fn a_level_without_a_limit_only_pauses() {
    let mut cell = Cell::new(None.into());
    (0..1000).for_each(|_| cell.take(7));
    assert_eq!((cell.free_at(), cell.is_slow()), (7 - 7, false));
    assert!(cell.refused(Signal::Slow(None), 7, 8));
    assert_eq!((cell.free_at(), cell.is_slow()), (8 + SECOND, false));
    assert!(cell.per_second().is_infinite());
}

#[test]
fn a_higher_limit_ends_a_pause_and_a_lower_one_does_not() {
    let mut cell = Cell::new(Some(per_minute(6)).into());
    cell.take(0);
    cell.refused(Signal::Stop(None), 0, 1);
    cell.change(Some(per_minute(3)).into(), 2);
    assert!(cell.is_spent(3));
    cell.change(Some(per_second(10)).into(), 4);
    let waits = cell.free_at();
    cell.change(Some(per_second(10)).into(), 5);
    assert_eq!(cell.free_at(), waits, "the same limit is no other");
    assert!(!cell.is_spent(5) && cell.free_at() < SLOWEST + 10, "as slow as after any refusal");
}

#[test]
fn nobody_waits_for_a_level_that_is_not_theirs() {
    let mut play = Play::new(state(per_second(50), per_second(1)));
    // Ten of one bot: a second and a bit apart.
    (0..10).for_each(|number| _ = play.ask(number, Some(0), u64::MAX));
    for number in 10..30 {
        play.run(play.now + 100 * MS, 0);
        play.ask(number, None, u64::MAX);
        play.run(play.now + 25 * MS, 0);
        assert!(play.sent.contains_key(&number), "the app has room");
    }
    play.run(u64::MAX / 2, 0);
    assert!(kept(&play.times(|number| number < 10), per_second(1)));
}

#[test]
fn those_that_wait_for_a_paused_bot_are_in_nobodys_way() {
    for is_paused_before in [true, false] {
        let mut play = Play::new(state(per_second(10), per_second(10)));
        let bot = play.state.places(&keys(Some(0)), 0).remove(1);
        let pause = || bot.cell().refused(Signal::Slow(Some(1000 * SECOND)), 0, 0);
        is_paused_before.then(pause);
        (0..100).for_each(|number| _ = play.ask(number, Some(0), u64::MAX));
        (!is_paused_before).then(pause);
        play.run(SECOND, 0);
        // Another bot's go one after the other, as if it were alone.
        for number in 100..103 {
            play.ask(number, Some(1), 300 * MS);
        }
        assert!(play.ask(103, Some(1), 300 * MS).is_none(), "its turn is a third of a second away");
        play.run(2 * SECOND, 0);
        assert!((100..103).all(|number| play.sent.contains_key(&number)) && !play.sent.contains_key(&103));
        // They count where they wait.
        assert!(play.ask(104, Some(0), 1005 * SECOND).is_none() && play.ask(105, Some(0), 1030 * SECOND).is_some());
    }
}

#[test]
fn those_that_wait_for_all_calls_count_for_all_bots() {
    // A bot may have what all have: its calls wait for both.
    let mut play = Play::new(state(per_second(10), per_second(10)));
    (0..20).for_each(|number| _ = play.ask(number, Some(0), u64::MAX));
    assert!(play.ask(20, Some(1), SECOND).is_none() && play.ask(21, None, SECOND).is_none());
    assert!(play.ask(22, Some(1), 3 * SECOND).is_some() && play.ask(23, None, 3 * SECOND).is_some());
}

#[test]
fn a_turn_that_would_come_too_late_is_refused_at_once_and_takes_nothing() {
    let mut play = Play::new(state(per_second(1), per_second(1)));
    let patience = 5 * SECOND;
    let tickets: Vec<_> = (0..10).filter_map(|number| play.ask(number, None, patience)).collect();
    assert_eq!((play.sent.len(), tickets.len()), (1, 4));
    // Where one leaves, another has room.
    assert!(play.state.leave(tickets[1]).is_some() && play.state.leave(tickets[1]).is_none());
    assert!(play.ask(10, None, patience).is_some() && play.ask(11, None, patience).is_none());
    play.run(u64::MAX / 2, 0);
    assert_eq!(play.sent.keys().copied().collect::<Vec<_>>(), [0, 1, 3, 4, 10]);
    assert_eq!(play.state.sizes().0, 0);
}

#[test]
fn so_many_wait_and_no_more() {
    let mut play = Play::new(state(per_second(1), per_second(1)));
    play.state.max_waiting = 3;
    let places = play.state.places(&keys(None), 0);
    assert!(matches!(play.state.ask(places.clone(), 0, u64::MAX, || 0), Asked::Go(_)));
    assert!((1..4).all(|number| matches!(play.state.ask(places.clone(), 0, u64::MAX, || number), Asked::Wait { .. })));
    assert!(matches!(play.state.ask(places, 0, u64::MAX, || 4), Asked::Full(_)));
}

#[test]
fn keys_are_bounded_and_idle_ones_give_way() {
    for max_keys in [10, 100] {
        let mut state = State::<usize>::new();
        state.add(PaceLevel::new("user", per_second(10)).per_bot().max_keys(max_keys));
        let mut ask = |key: usize, now| {
            let places = state.places(&[(0, key.to_string().into())], now);
            let gone = matches!(state.ask(places, now, now, || key), Asked::Go(_));
            (gone, state.sizes().1)
        };
        let mut gone = HashMap::<_, usize>::new();
        for key in 0..1000 {
            let (is_gone, size) = ask(key, 0);
            *gone.entry(is_gone).or_default() += 1;
            assert!(size <= max_keys + 1);
        }
        // Those beyond the bound share one.
        assert_eq!((gone[&true], gone[&false]), (max_keys + 1, 999 - max_keys));
        // Soon all are idle, but one look a second is enough.
        assert_eq!(ask(1000, SECOND / 2), (true, max_keys + 1));
        assert_eq!(ask(1001, SECOND), (true, 1));
        assert!((1002..1001 + max_keys).all(|key| ask(key, SECOND).0));
    }
}
