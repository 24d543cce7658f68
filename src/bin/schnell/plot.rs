//! Pictures of plans, as SVG.

use plotters::prelude::*;
use schnell::{Card, Error, Prediction, Result};

use crate::plan::Point;
use crate::statistics::{PERCENTILES, Summary};

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Internal(format!("a plot failed: {error}"))
}

/// Two lanes: kernels, and the copies of weights beside them.
pub fn timeline(prediction: &Prediction) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (1600, 240)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let end = prediction.intervals.iter().map(|interval| interval.end).fold(1.0, f64::max);
        let caption = format!("predicted on {} (not measured)", prediction.card.name);
        let mut chart = ChartBuilder::on(&area)
            .caption(caption, ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..end, 0.0..2.0)
            .map_err(failed)?;
        let lane = |y: &f64| if *y < 1.0 { "copies".to_string() } else { "kernels".to_string() };
        chart
            .configure_mesh()
            .disable_mesh()
            .x_desc("ms")
            .y_labels(2)
            .y_label_formatter(&lane)
            .draw()
            .map_err(failed)?;
        let lanes = prediction.intervals.iter().enumerate().map(|(i, interval)| {
            let (bottom, color) = if interval.is_upload { (0.1, 5) } else { (1.1, 0) };
            let corners = [(interval.start, bottom), (interval.end, bottom + 0.8)];
            // Neighbors differ.
            Rectangle::new(corners, Palette99::pick(color + i % 2).filled())
        });
        chart.draw_series(lanes).map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// The time of a picture against the budget.
pub fn sweep(card: Card, points: &[Point]) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (900, 500)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let most = points.iter().map(|point| gib(point.budget)).fold(0.1, f64::max);
        let slowest = points.iter().map(|point| point.total_ms).fold(1.0, f64::max);
        let mut chart = ChartBuilder::on(&area)
            .caption(format!("predicted on {} (not measured)", card.name), ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..most * 1.05, 0.0..slowest * 1.1)
            .map_err(failed)?;
        chart.configure_mesh().x_desc("budget, GiB").y_desc("a picture, ms").draw().map_err(failed)?;
        let at = |point: &Point| (gib(point.budget), point.total_ms);
        chart.draw_series(LineSeries::new(points.iter().map(at), &BLUE)).map_err(failed)?;
        chart
            .draw_series(points.iter().map(|point| Circle::new(at(point), 3, BLUE.filled())))
            .map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// How often a picture took how long, and where percentiles lie.
pub fn histogram(device: &str, ms: &[f64]) -> Result<String> {
    let Some(summary) = Summary::of(ms) else { return Err(failed("no times")) };
    let fastest = ms.iter().copied().fold(f64::INFINITY, f64::min);
    // Bins of equal width, about as many as the square root of what falls into them.
    let bins = (ms.len() as f64).sqrt().ceil().clamp(5.0, 60.0) as usize;
    let width = ((summary.slowest - fastest) / bins as f64).max(1e-3);
    let mut counts = vec![0u32; bins];
    for time in ms {
        counts[(((time - fastest) / width) as usize).min(bins - 1)] += 1;
    }
    let most = counts.iter().copied().max().unwrap_or(1).max(1);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (900, 400)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let (from, to) = (fastest - width, fastest + width * (bins + 1) as f64);
        let mut chart = ChartBuilder::on(&area)
            .caption(format!("{} pictures on {device}", ms.len()), ("sans-serif", 18))
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(50)
            .build_cartesian_2d(from..to, 0..most + most / 8 + 1)
            .map_err(failed)?;
        chart.configure_mesh().disable_x_mesh().x_desc("ms").y_desc("pictures").draw().map_err(failed)?;
        let bars = counts.iter().enumerate().filter(|(_, count)| **count > 0).map(|(i, count)| {
            let begin = fastest + i as f64 * width;
            Rectangle::new([(begin, 0), (begin + width, *count)], Palette99::pick(0).filled())
        });
        chart.draw_series(bars).map_err(failed)?;
        for ((name, _), at) in PERCENTILES.iter().zip(summary.percentiles) {
            let line = LineSeries::new([(at, 0), (at, most)], BLACK.mix(0.6));
            chart.draw_series(line).map_err(failed)?;
            let label = Text::new(name.to_string(), (at, most + most / 16 + 1), ("sans-serif", 12));
            chart.draw_series([label]).map_err(failed)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}
