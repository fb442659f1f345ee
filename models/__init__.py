"""Bundled models: data, mapped into the package as `ppexport.models`."""
