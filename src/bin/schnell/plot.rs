//! Pictures of plans, as SVG.

use plotters::prelude::*;
use schnell::{Card, Error, Prediction, Result};

use crate::plan::Point;

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
