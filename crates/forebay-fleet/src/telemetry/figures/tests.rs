//! What the live figures say of requests whose times are known.

use super::*;

const MS: Duration = Duration::from_millis(1);

fn at(seconds: f64) -> Time {
    Time::from_micros((seconds * 1e6) as u64)
}

fn stream(ttft: Duration) -> Ended {
    Ended {
        ttft: Some(ttft),
        tpot: Some(20 * MS),
        e2e: Some(ttft * 3),
        output_tokens: 100,
        prompt_tokens: 50,
        slo_met: Some(ttft < 300 * MS),
        predicted: Some((ttft * 2, ttft)),
        ..Ended::of(Outcome::Success)
    }
}

fn of(figures: &Figures, window: Window, now: f64) -> Summary {
    figures.summary(window, at(now), &mut Scratch::default())
}

#[test]
fn counts_and_means_are_exact_and_quantiles_within_a_percent() {
    let figures = Figures::new(Time::ZERO);
    let mut values: Vec<f64> = (1..=5000).map(|n| 0.0003 * f64::from(n) * f64::from(n % 7 + 1)).collect();
    for value in &values {
        figures.record(&stream(Duration::from_secs_f64(*value)), at(30.0));
    }
    values.sort_by(f64::total_cmp);
    let ttft = of(&figures, Window::Minute, 31.0).ttft;
    assert_eq!(ttft.count, 5000);
    let mean = values.iter().sum::<f64>() / 5000.0;
    assert!((ttft.mean_seconds.unwrap() / mean - 1.0).abs() < 1e-6);
    for (found, place) in [(ttft.p50_seconds, 2500), (ttft.p95_seconds, 4750), (ttft.p99_seconds, 4950)] {
        let ratio = found.unwrap() / values[place - 1];
        assert!((0.999..1.01).contains(&ratio), "{ratio} at {place}");
    }
}

#[test]
fn quantiles_of_few_requests_are_those_of_the_reports() {
    let figures = Figures::new(Time::ZERO);
    (1..=11).for_each(|n| figures.record(&stream(n * 100 * MS), at(30.0)));
    let ttft = of(&figures, Window::Minute, 31.0).ttft;
    // numpy.percentile([100, 200, …, 1100], [50, 95, 99]), as `forebay bench` prints them.
    for (found, ms) in [(ttft.p50_seconds, 600.0), (ttft.p95_seconds, 1050.0), (ttft.p99_seconds, 1090.0)] {
        assert!((found.unwrap() * 1e3 / ms - 1.0).abs() < 0.01, "{found:?} beside {ms} ms");
    }
}

#[test]
fn a_window_forgets_what_is_older_and_the_start_does_not() {
    let figures = Figures::new(Time::ZERO);
    for (time, count) in [(5.0, 1), (700.0, 2), (1300.0, 4), (1595.0, 8)] {
        (0..count).for_each(|_| figures.record(&stream(100 * MS), at(time)));
    }
    let counts = Window::ALL.map(|window| of(&figures, window, 1600.0).requests);
    assert_eq!(counts, [8, 12, 14, 15]);
    let counts = Window::ALL.map(|window| of(&figures, window, 9000.0).requests);
    assert_eq!(counts, [0, 0, 0, 15]);
    assert_eq!(of(&figures, Window::Minute, 9000.0).ttft, Spread::default());
}

#[test]
fn a_rate_is_over_what_the_window_covers_and_never_over_more_than_was_lived() {
    let figures = Figures::new(at(1000.0));
    (0..50).for_each(|_| figures.record(&stream(100 * MS), at(1005.0)));
    let young = of(&figures, Window::QuarterHour, 1020.0);
    assert_eq!((young.covers_seconds, young.output_tokens_per_second, young.goodput_per_second), (20.0, 250.0, 2.5));
    let minute = of(&figures, Window::Minute, 1064.0);
    assert_eq!((minute.covers_seconds, minute.requests), (64.0, 50));
    assert_eq!(of(&figures, Window::Start, 1100.0).covers_seconds, 100.0);
}

#[test]
fn how_requests_ended_is_told_apart_and_adds_up() {
    let figures = Figures::new(Time::ZERO);
    for outcome in [
        Outcome::Success,
        Outcome::ClientError,
        Outcome::Failed(Failure::Died),
        Outcome::Failed(Failure::ClientLeft),
        Outcome::Refused("forebay_no_backend"),
    ] {
        figures.record(&Ended { crossed: true, ..Ended::of(outcome) }, at(1.0));
    }
    let all = of(&figures, Window::Start, 2.0);
    let each = [all.succeeded, all.client_errors, all.failed, all.client_left, all.refused];
    assert_eq!((each, all.requests, all.crossed), ([1; 5], 5, 5));
    let outcomes: Vec<(&str, u64)> = all.outcomes.into_iter().collect();
    assert_eq!(outcomes, [("client_error", 1), ("client_left", 1), ("died", 1), ("forebay_no_backend", 1)]);
    figures.record(&Ended::of(Outcome::Failed(Failure::Died)), at(100.0));
    assert_eq!(of(&figures, Window::Start, 101.0).outcomes["died"], 2);
    let minute = of(&figures, Window::Minute, 101.0);
    assert_eq!(minute.outcomes.into_iter().collect::<Vec<_>>(), [("died", 1)], "the rest is older");
}

#[test]
fn predictions_are_held_against_what_came() {
    let figures = Figures::new(Time::ZERO);
    figures.record(&stream(100 * MS), at(1.0));
    figures.record(&Ended { predicted: Some((150 * MS, 300 * MS)), ..stream(300 * MS) }, at(1.0));
    figures.record(&Ended { predicted: Some((150 * MS, Duration::ZERO)), ..stream(300 * MS) }, at(1.0));
    let all = of(&figures, Window::Start, 2.0);
    assert_eq!((all.predictions, all.prediction_error), (2, Some(0.75)));
    assert!((all.prediction_bias.unwrap() - 350.0 / 400.0).abs() < 1e-9);
    assert_eq!((all.slo_met, all.slo_missed), (1, 2));
}

#[test]
fn the_timeline_has_fifteen_minutes_in_points_of_ten_seconds() {
    let figures = Figures::new(Time::ZERO);
    assert!(figures.timeline(at(1.0)).is_empty());
    for slot in 0..200_u32 {
        if slot % 10 != 3 {
            figures.record(&stream((slot + 1) * MS), at(f64::from(slot) * 10.0 + 1.0));
        }
    }
    let points = figures.timeline(at(1995.0));
    let numbers: Vec<u64> = points.iter().map(|point| point.at).collect();
    assert_eq!(numbers, (110..200).filter(|number| number % 10 != 3).collect::<Vec<u64>>());
    for point in points {
        let ratio = point.ttft_p95_seconds.unwrap() / ((point.at + 1) as f64 / 1000.0);
        assert!((0.99..1.01).contains(&ratio) && point.output_tokens == 100, "{point:?}");
    }
    assert!(figures.timeline(at(5000.0)).is_empty());
}

#[test]
fn an_hour_is_the_longest_and_nothing_the_shortest_time() {
    let figures = Figures::new(Time::ZERO);
    figures.record(&stream(Duration::ZERO), at(1.0));
    assert_eq!(of(&figures, Window::Start, 2.0).ttft.p50_seconds, Some(0.0));
    figures.record(&stream(Duration::from_secs(100_000)), at(1.0));
    let ttft = of(&figures, Window::Start, 2.0).ttft;
    assert_eq!(ttft.mean_seconds, Some(50_000.0));
    // Between the two in proportion, as numpy has it.
    assert!((1800.0..1820.0).contains(&ttft.p50_seconds.unwrap()));
    assert!((3564.0..3604.0).contains(&ttft.p99_seconds.unwrap()));
}

#[test]
fn memory_is_taken_at_the_first_end_and_bounded() {
    let figures = Figures::new(Time::ZERO);
    assert!(figures.kept.get().is_none());
    figures.record(&stream(MS), at(1.0));
    let kept = figures.kept.get().unwrap();
    let slots = kept.fine.slots.len() + kept.coarse.slots.len() + 1;
    let bytes = slots * Slot::default().bytes();
    println!("{slots} slots, {bytes} bytes of counts");
    assert!(bytes < 512 << 10, "{bytes}");
}
