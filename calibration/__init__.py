"""Bundled free photographs and recipes: data, mapped into the package as `ppexport.calibration`."""
