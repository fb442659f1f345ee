document.querySelectorAll(".slider").forEach(function (box) {
  var range = box.querySelector("input");
  var move = function () { box.style.setProperty("--at", range.value + "%"); };
  range.addEventListener("input", move);
  move();
});
// On a narrow page a table that folds shows every row as a card, where each cell needs the title of its column.
for (const table of document.querySelectorAll(".fold table")) {
  const titles = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  for (const row of table.tBodies[0].rows) [...row.cells].forEach((cell, i) => { cell.dataset.title = titles[i]; });
}
