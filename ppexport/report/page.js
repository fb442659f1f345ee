document.querySelectorAll(".slider").forEach(function (box) {
  var range = box.querySelector("input");
  var move = function () { box.style.setProperty("--at", range.value + "%"); };
  range.addEventListener("input", move);
  move();
});
